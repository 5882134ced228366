#!/usr/bin/env bash
# Builds a real Kubernetes API server for tests from Debian's packages, for machines where none can be downloaded.
#
#   tests/e2e/kubernetes/tools.sh DEST                  kube-apiserver, etcd and kubectl
#   tests/e2e/kubernetes/tools.sh --kubectl-only DEST   kubectl alone, in seconds
#
# kubectl is Debian trixie's (1.32); with --kubectl-only it may be the machine's own, if that is new enough. etcd is
# Debian bookworm's. Debian has no kube-apiserver package, but bookworm's source package `kubernetes`, of which it only
# builds kubectl, contains all of Kubernetes 1.20. That is compiled with bookworm's Go, in about 12 minutes on one core.
# The old version suffices: the API that the worker uses has not changed since.
#
# Nothing is installed on the machine: a separate apt in DEST fetches and unpacks the packages there. Existing results
# are reused. Exits with 3 and the reason if this machine cannot do it.
set -euo pipefail

kubectl_minor_min=22
old=bookworm
new=trixie
# The bookworm source package, and the Go to compile it.
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

# The first value of a field in a deb822 file, or the URL in a one-line file, for Debian's own repository.
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

# An apt with two releases of Debian, separate from the machine's.
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

# A kubectl's version: "Client Version: v1.32.3", or in old ones `GitVersion:"v1.20.2"` within a longer text.
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

# Debian's Kubernetes source needs three changes to build the API server; see below.
build_apiserver() {
  [ ! -x "$dest/kube-apiserver" ] || return 0
  command -v dpkg-source >/dev/null || cannot "this needs dpkg-source, of the package dpkg-dev"
  unpack "golang-$go_version-go/$old" "golang-$go_version-src/$old" "golang-github-modern-go-reflect2-dev/$old"
  (cd "$work" && own_apt source --download-only "kubernetes/$old") || cannot "the source of Kubernetes cannot be fetched"

  # First: its module list does not match this Go's, so it is built in GOPATH mode.
  local go_root=$work/root/usr/lib/go-$go_version package tree directories flags module
  for package in api misc src test; do
    ln -sfn "../../share/go-$go_version/$package" "$go_root/$package"
  done
  export GOROOT=$go_root GOPATH=$work/go GOCACHE=$work/cache GO111MODULE=off GOFLAGS="" CGO_ENABLED=0
  tree=$GOPATH/src/k8s.io/kubernetes
  mkdir -p "${tree%/*}"
  rm -rf "$tree"
  dpkg-source --no-check -x "$work"/kubernetes_*"$kubernetes_version"*.dsc "$tree" >/dev/null

  # Second: its copy of reflect2 crashes when compiled by a newer Go. Debian's does not.
  package=github.com/modern-go/reflect2
  rm -rf "${tree:?}/vendor/$package"
  cp -r "$work/root/usr/share/gocode/src/$package" "$tree/vendor/$package"
  rm -f "$tree/vendor/$package/"*_test.go

  # Third: one generated file is missing.
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

# Left by an interrupted run.
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
# Go's cache is read-only, even for its owner.
[ ! -d "$work" ] || chmod -R u+w "$work"
rm -rf "$work"
echo "$dest"
