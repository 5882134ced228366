#!/usr/bin/env bash
# A real Kubernetes API server to test against, where none can be downloaded: made from Debian's packages.
#
#   tests/e2e/kubernetes/tools.sh DEST                  kube-apiserver, etcd and kubectl
#   tests/e2e/kubernetes/tools.sh --kubectl-only DEST   kubectl alone, in seconds
#
# kubectl is Debian trixie's (1.32); kubectl alone may also be the machine's own, if that is new enough. etcd is Debian
# bookworm's. No release of Debian has a kube-apiserver to install, but bookworm's source package `kubernetes`, of which only
# kubectl is built there, holds the whole of Kubernetes 1.20: that is compiled, with bookworm's Go, in about 12 minutes of one
# processor. The old server is what makes this possible at all, and it will do: what the worker asks of a cluster has been the
# same since.
#
# Nothing is installed on the machine: the packages are fetched through an apt of its own in DEST and unpacked there. What is
# there already is not made again. Ends with 3 where this machine cannot do it, and says why.
set -euo pipefail

kubectl_minor_min=22
old=bookworm
new=trixie
# What of bookworm is compiled, and with which Go.
kubernetes_version=1.20.2
go_version=1.19

cannot() {
  echo "cannot: $*" >&2
  exit 3
}

kubectl_only=false
if [ "${1:-}" = --kubectl-only ]; then
  kubectl_only=true
  shift
fi
[ "$#" -eq 1 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
dest=$(cd "$1" && pwd)
work=$dest/work

# The first value of a field of a deb822 file or the address in a one-line file that speaks of Debian itself.
debian_mirror() {
  local files=()
  mapfile -t files < <(find /etc/apt/sources.list /etc/apt/sources.list.d -type f \( -name '*.list' -o -name '*.sources' \) 2>/dev/null)
  [ "${#files[@]}" -gt 0 ] || return 0
  awk '
    /^[[:space:]]*#/ { next }
    tolower($1) == "uris:" { address = $2 }
    $1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /^https?:/) { address = $i; break } }
    address ~ /\/debian\/?$/ { print address; exit }
  ' "${files[@]}"
}

# An apt that knows two releases of Debian and touches nothing of the machine's.
prepare_apt() {
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror kinds
  command -v apt-get >/dev/null || cannot "this needs apt-get"
  command -v dpkg-deb >/dev/null || cannot "this needs dpkg-deb"
  [ -r "$keyring" ] || cannot "$keyring is missing, by which Debian's packages are known to be Debian's"
  mirror=$(debian_mirror)
  [ -n "$mirror" ] || cannot "no mirror of Debian is named in /etc/apt"
  mkdir -p "$work/apt/etc" "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
  rm -f "$work/apt/etc/"*
  for release in "$@"; do
    kinds=deb
    [ "$release" = "$new" ] || kinds="deb deb-src"
    printf 'Types: %s\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n' "$kinds" "$mirror" "$release" "$keyring"
  done >"$work/apt/etc/debian.sources"
  own_apt update >"$work/apt/log" 2>&1 || { cat "$work/apt/log" >&2; cannot "the lists of packages cannot be fetched"; }
}

own_apt() {
  apt-get -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/apt/etc" \
    -o Dir::State::Lists="$work/apt/lists" -o Dir::Cache="$work/apt/cache" -o Acquire::Languages=none \
    -o APT::Sandbox::User=root "$@"
}

# Fetches packages and unpacks them below $work/root.
unpack() {
  local package
  mkdir -p "$work/packages" "$work/root"
  (cd "$work/packages" && own_apt download "$@") || cannot "these cannot be fetched: $*"
  for package in "$work/packages/"*.deb; do
    dpkg-deb -x "$package" "$work/root"
  done
  rm -rf "$work/packages"
}

# What a kubectl says of itself: "Client Version: v1.32.3", or from old ones `GitVersion:"v1.20.2"` in the midst of more.
kubectl_minor() {
  "$1" version --client 2>/dev/null | sed -nE 's/.*v1\.([0-9]+)\..*/\1/p' | head -n 1
}

own_kubectl() {
  local found minor
  found=$(command -v kubectl) || return 1
  minor=$(kubectl_minor "$found")
  [ "${minor:-0}" -ge "$kubectl_minor_min" ] || return 1
  ln -sfn "$(realpath "$found")" "$dest/kubectl"
}

get_kubectl() {
  [ ! -x "$dest/kubectl" ] || return 0
  ! $kubectl_only || ! own_kubectl || return 0
  [ -d "$work/apt" ] || prepare_apt "$new"
  unpack "kubectl/$new"
  install -m 755 "$work/root/usr/bin/kubectl" "$dest/kubectl"
  [ -n "$(kubectl_minor "$dest/kubectl")" ] || { rm "$dest/kubectl"; cannot "Debian $new's kubectl does not run here"; }
}

get_etcd() {
  [ ! -x "$dest/etcd" ] || return 0
  unpack "etcd-server/$old"
  install -m 755 "$work/root/usr/bin/etcd" "$dest/etcd"
}

# Kubernetes as Debian has it is not quite what it takes to build the API server; see the three remarks within.
build_apiserver() {
  [ ! -x "$dest/kube-apiserver" ] || return 0
  command -v dpkg-source >/dev/null || cannot "this needs dpkg-source, of the package dpkg-dev"
  unpack "golang-$go_version-go/$old" "golang-$go_version-src/$old" "golang-github-modern-go-reflect2-dev/$old"
  (cd "$work" && own_apt source --download-only "kubernetes/$old") || cannot "the source of Kubernetes cannot be fetched"

  # The first remark: its list of modules is not what this Go would write, so it is built as in the times before modules.
  local go_root=$work/root/usr/lib/go-$go_version package tree directories flags module
  for package in api misc src test; do
    ln -sfn "../../share/go-$go_version/$package" "$go_root/$package"
  done
  export GOROOT=$go_root GOPATH=$work/go GOCACHE=$work/cache GO111MODULE=off GOFLAGS="" CGO_ENABLED=0
  tree=$GOPATH/src/k8s.io/kubernetes
  mkdir -p "${tree%/*}"
  rm -rf "$tree"
  dpkg-source --no-check -x "$work"/kubernetes_*"$kubernetes_version"*.dsc "$tree" >/dev/null

  # The second: the copy of reflect2 in it crashes when it is compiled by a Go younger than itself. Debian's does not.
  package=github.com/modern-go/reflect2
  rm -rf "${tree:?}/vendor/$package"
  cp -r "$work/root/usr/share/gocode/src/$package" "$tree/vendor/$package"
  rm -f "$tree/vendor/$package/"*_test.go

  # The third: one file is left out that is made from all the others.
  cd "$tree"
  "$go_root/bin/go" build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
  directories=$(grep -rl --include='*.go' --exclude='*_test.go' '+k8s:openapi-gen=' cmd pkg plugin staging/src/k8s.io |
    grep -vE '/(code-generator|sample-apiserver)/' | xargs -n 1 dirname | sort -u |
    sed -e 's#^staging/src/#vendor/#' -e 's#^#k8s.io/kubernetes/#' | paste -s -d ,)
  PATH=$go_root/bin:$PATH "$work/openapi-gen" --input-dirs "$directories" --output-base "$GOPATH/src" \
    --output-package k8s.io/kubernetes/pkg/generated/openapi --output-file-base zz_generated.openapi \
    --go-header-file hack/boilerplate/boilerplate.generatego.txt --report-filename "$work/violations"

  flags="-s -w"
  for module in client-go/pkg/version component-base/version; do
    module=k8s.io/kubernetes/vendor/k8s.io/$module
    flags+=" -X $module.gitVersion=v$kubernetes_version -X $module.gitTreeState=archive"
    flags+=" -X $module.gitMajor=1 -X $module.gitMinor=$(cut -d . -f 2 <<<"$kubernetes_version")"
  done
  "$go_root/bin/go" build -trimpath -ldflags "$flags" -o "$work/kube-apiserver" ./cmd/kube-apiserver
  cd "$dest"
  install -m 755 "$work/kube-apiserver" "$dest/kube-apiserver"
}

# Left behind by one that was cut off.
rm -rf "$work"
if ! $kubectl_only && { [ ! -x "$dest/kube-apiserver" ] || [ ! -x "$dest/etcd" ]; }; then
  prepare_apt "$old" "$new"
  [ ! -L "$dest/kubectl" ] || rm "$dest/kubectl"
  get_kubectl
  get_etcd
  build_apiserver
else
  get_kubectl
fi
# What Go keeps may not be written to, by its owner either.
[ ! -d "$work" ] || chmod -R u+w "$work"
rm -rf "$work"
echo "$dest"
