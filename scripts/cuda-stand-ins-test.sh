#!/usr/bin/env bash
# Checks that a program that is linked with the stand-ins for CUDA's libraries starts without these, gets an error from each
# call, and calls the real library, with all arguments unchanged, where there is one. Needs a C compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 scripts/cuda_stand_ins.py "$folder"

cat >"$folder/program.c" <<'EOF'
#include <stdio.h>
/* Not the real parameters of these functions, but as many of both kinds as any of them has. */
int cuInit(int, int, int, int, int, int, int, int, double, double, double, double, double, double, double, double);
int cublasCreate_v2(void *);
int cublasLtCreate(void *);
int main(void) {
  for (int i = 0; i < 2; i++) printf("%d ", cuInit(1, 2, 3, 4, 5, 6, 7, 8, .5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5));
  printf("%d %d\n", cublasCreate_v2(0), cublasLtCreate(0));
}
EOF
cat >"$folder/real.c" <<'EOF'
int cuInit(int a, int b, int c, int d, int e, int f, int g, int h, double s, double t, double u, double v, double w,
           double x, double y, double z) {
  int is_complete = a == 1 && b == 2 && c == 3 && d == 4 && e == 5 && f == 6 && g == 7 && h == 8 && s == .5 && t == 1.5 &&
                 u == 2.5 && v == 3.5 && w == 4.5 && x == 5.5 && y == 6.5 && z == 7.5;
  return is_complete ? 42 : 13;
}
EOF
cc -o "$folder/program" "$folder/program.c" -L"$folder" -lcuda -lcublas -lcublasLt -ldl -lpthread
mkdir "$folder/libraries"
cc -shared -fPIC -o "$folder/libraries/libcuda.so.1" "$folder/real.c"

check() {
  [ "$2" = "$3" ] || { echo "error: $1: \`$2\`, not \`$3\`" >&2; exit 1; }
  echo "$1: $2"
}
if ! ldconfig -p 2>/dev/null | grep -q libcuda.so.1; then
  check "without the libraries" "$("$folder/program")" "100 100 1 1"
fi
check "with one of them" "$(FLUXSERVE_CUDA_LIBRARIES=/nowhere:$folder/libraries "$folder/program")" "42 42 1 1"
