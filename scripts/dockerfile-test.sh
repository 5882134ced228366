#!/usr/bin/env bash
# Builds Dockerfile.cuda without Docker, and runs the image: each line of the file is followed in a root folder, and the result
# is started as `docker run` would. Needs root, and the rights to mount and chroot; says so and ends well where they are missing.
#
#   scripts/dockerfile-test.sh [--program PROGRAM] [--libraries] [--keep] [--file DOCKERFILE] [--build-arg NAME=VALUE]
#
# With --program everything is done except `cargo build`, in place of which PROGRAM is installed, and CUDA's libraries (500 MB)
# are left out unless --libraries asks for them. Without it, the build takes half an hour. The machine's own distribution, from
# its own mirror, stands in for the images that the file begins with, and the machine's own Rust for theirs. --keep leaves the
# folders in .tools/dockerfile.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$PWD/.tools/dockerfile
arguments=()
keep=
while [ "$#" -gt 0 ]; do
  case $1 in
  --program | --file) arguments+=("$1" "$(realpath "$2")"); shift ;;
  --libraries) arguments+=("$1") ;;
  --build-arg) arguments+=("$1" "$2"); shift ;;
  --keep) keep=1 ;;
  *) echo "error: unknown argument \`$1\`" >&2; exit 2 ;;
  esac
  shift
done

skip() {
  echo "skipped: Dockerfile.cuda, because $1"
  exit
}
[ "$(id -u)" -eq 0 ] || skip "it needs root"
own=(unshare --mount --pid --fork --kill-child --mount-proc --propagation private)
"${own[@]}" chroot / true 2>/dev/null || skip "namespaces and chroot are not permitted here"
"${own[@]}" unshare --net --ipc mount --types tmpfs none /mnt 2>/dev/null || skip "file systems cannot be mounted here"
[ -e /etc/debian_version ] || skip "this machine is neither Debian nor Ubuntu"

# Prints the machine's sources of its own distribution, a line each, the release itself first.
sources() {
  # shellcheck source=/dev/null
  . /etc/os-release
  # shellcheck disable=SC2016
  apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v release="$VERSION_CODENAME" '$2 ~ "^" release "(-updates|-security)?$" && !seen[$0]++' |
    sort --stable --key=2,2 | sed 's/^/deb /'
}

run_debootstrap() {
  if command -v debootstrap >/dev/null; then
    debootstrap "$@"
    return
  fi
  # The package is unpacked, not installed.
  local tool=$folder/debootstrap
  if [ ! -x "$tool/usr/sbin/debootstrap" ]; then
    mkdir -p "$tool"
    (
      cd "$tool"
      apt-get download debootstrap || { apt-get update && apt-get download debootstrap; }
      dpkg-deb -x debootstrap_*.deb .
    ) >"$folder/debootstrap.log" 2>&1 || { cat "$folder/debootstrap.log" >&2; return 1; }
  fi
  DEBOOTSTRAP_DIR=$tool/usr/share/debootstrap "$tool/usr/sbin/debootstrap" "$@"
}

# The root folder that every stage begins with: the distribution's smallest, and apt as in the images of Debian and Ubuntu.
base() {
  local lines release mirror new=$folder/base.new
  [ ! -d "$folder/base" ] || return 0
  lines=$(sources)
  if [ -z "$lines" ]; then
    apt-get update -qq
    lines=$(sources)
  fi
  read -r _ mirror release _ <<<"$lines"
  [ -n "$release" ] || { echo "error: apt has no source of this machine's own release" >&2; return 1; }
  rm -rf "$new"
  mkdir -p "$new/etc/dpkg/dpkg.cfg.d"
  printf '%s\n' force-unsafe-io 'path-exclude /usr/share/doc/*' 'path-exclude /usr/share/man/*' \
    'path-exclude /usr/share/locale/*' >"$new/etc/dpkg/dpkg.cfg.d/images"
  run_debootstrap --variant=minbase "$release" "$new" "$mirror" >"$folder/base.log" 2>&1 || {
    tail -n 20 "$folder/base.log" >&2
    return 1
  }
  printf '%s\n' "$lines" >"$new/etc/apt/sources.list"
  {
    apt-config dump | grep -E '^Acquire::(Check-|Retries|ForceIPv|https?(::| ))' || true
    echo 'Acquire::Languages "none";'
  } >"$new/etc/apt/apt.conf.d/99machine"
  rm -f "$new"/var/cache/apt/archives/*.deb
  mv "$new" "$folder/base"
}

started=$SECONDS
mkdir -p "$folder"
base
echo "the distribution is installed, $((SECONDS - started)) s"
rm -rf "$folder/build"
mkdir "$folder/build"
# Mounts and processes of the namespaces end with the command, so that nothing below the folder belongs to the machine then.
status=0
"${own[@]}" python3 tests/e2e/dockerfile/main.py --base "$folder/base" --folder "$folder/build" "${arguments[@]}" || status=$?
[ -n "$keep" ] || rm -rf "$folder/build"
exit "$status"
