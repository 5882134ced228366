"""Archives that stand in for CUDA's shared libraries when the program is linked.

    python3 scripts/cuda_stand_ins.py DESTINATION

A program that is linked with libcuda, libcublas and so on does not start where they are missing. Linked with these archives
it does: each of their functions is a jump through a table, whose entries first lead to code that loads the real library and
looks up the function, as a dynamic linker binds lazily. A missing function returns the library's own error for "no device" or
"not initialized", and the program continues without it.

At run time `FLUXSERVE_CUDA_LIBRARIES`, a list of folders with colons between, is searched first; then where the system's loader
searches; then the usual folders. For x86-64 and the System V calling convention.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

# By archive: the module of the bindings, the names of the real library, and the result of a missing function.
LIBRARIES = {
    "cuda": ("driver", ["libcuda.so.1"], 100),  # CUDA_ERROR_NO_DEVICE
    "cublas": ("cublas", ["libcublas.so.13"], 1),  # CUBLAS_STATUS_NOT_INITIALIZED
    "cublasLt": ("cublaslt", ["libcublasLt.so.13"], 1),  # CUBLAS_STATUS_NOT_INITIALIZED
    "curand": ("curand", ["libcurand.so.10"], 203),  # CURAND_STATUS_INITIALIZATION_FAILED
    "nvrtc": ("nvrtc", ["libnvrtc.so.13"], 11),  # NVRTC_ERROR_INTERNAL_ERROR
    "cudnn": ("cudnn", ["libcudnn.so.9"], 1001),  # CUDNN_STATUS_NOT_INITIALIZED
}
# All registers for arguments; the functions take at most eight floating-point numbers, and none that is wider.
ARGUMENTS = ["rdi", "rsi", "rdx", "rcx", "r8", "r9", "rax", "r10"]
VECTORS = 8

RESOLVER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern void *stand_in_%(name)s_table[] __attribute__((visibility("hidden")));
static const char *const functions[] = {%(functions)s};
static const char *const libraries[] = {%(libraries)s};
static const char *const places[] = {"/usr/local/cuda/lib64", "/usr/local/nvidia/lib64", "/usr/lib/x86_64-linux-gnu"};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void *library;

static void try_in(const char *folder, size_t length, const char *file) {
  char path[4096];
  int written = snprintf(path, sizeof path, "%%.*s/%%s", (int)length, folder, file);
  if (!library && length > 0 && written > 0 && (size_t)written < sizeof path)
    library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
}

static void load(void) {
  for (size_t i = 0; i < sizeof libraries / sizeof *libraries; i++) {
    for (const char *rest = getenv("FLUXSERVE_CUDA_LIBRARIES"); rest && *rest;) {
      size_t length = strcspn(rest, ":");
      try_in(rest, length, libraries[i]);
      rest += length + (rest[length] == ':');
    }
    if (!library) library = dlopen(libraries[i], RTLD_LAZY | RTLD_LOCAL);
    for (size_t p = 0; p < sizeof places / sizeof *places; p++) try_in(places[p], strlen(places[p]), libraries[i]);
  }
}

static int missing(void) { return %(error)d; }

__attribute__((visibility("hidden"))) void *stand_in_%(name)s_resolve(size_t index) {
  pthread_once(&once, load);
  void *function = library ? dlsym(library, functions[index]) : NULL;
  if (!function) function = (void *)missing;
  __atomic_store_n(&stand_in_%(name)s_table[index], function, __ATOMIC_RELEASE);
  return function;
}
"""


def resolve_entry(name):
    """The target of every function that is not bound yet: saves the arguments, binds, and continues with the call."""
    yield f"stand_in_{name}_bind:"
    yield "  .cfi_startproc"
    yield "  .cfi_def_cfa_offset 16"
    for register in ARGUMENTS:
        yield f"  push %{register}"
        yield "  .cfi_adjust_cfa_offset 8"
    yield f"  sub ${16 * VECTORS}, %rsp"
    yield f"  .cfi_adjust_cfa_offset {16 * VECTORS}"
    for vector in range(VECTORS):
        yield f"  movups %xmm{vector}, {16 * vector}(%rsp)"
    # The function's number is below what was pushed since. The stack is aligned to 16 here.
    yield f"  mov {16 * VECTORS + 8 * len(ARGUMENTS)}(%rsp), %rdi"
    yield f"  call stand_in_{name}_resolve"
    yield "  mov %rax, %r11"
    for vector in range(VECTORS):
        yield f"  movups {16 * vector}(%rsp), %xmm{vector}"
    yield f"  add ${16 * VECTORS}, %rsp"
    yield f"  .cfi_adjust_cfa_offset -{16 * VECTORS}"
    for register in reversed(ARGUMENTS):
        yield f"  pop %{register}"
        yield "  .cfi_adjust_cfa_offset -8"
    yield "  add $8, %rsp"
    yield "  .cfi_adjust_cfa_offset -8"
    yield "  jmp *%r11"
    yield "  .cfi_endproc"


def assembly(name, functions):
    yield "  .text"
    yield from resolve_entry(name)
    for index, function in enumerate(functions):
        yield f"  .globl {function}"
        yield f"  .type {function}, @function"
        yield f"{function}:"
        yield f"  jmp *stand_in_{name}_table+{8 * index}(%rip)"
        yield f"  .size {function}, .-{function}"
        yield f"stand_in_{name}_unbound{index}:"
        yield f"  push ${index}"
        yield f"  jmp stand_in_{name}_bind"
    yield '  .section .data.rel, "aw"'
    yield "  .balign 8"
    yield f"  .globl stand_in_{name}_table"
    yield f"  .hidden stand_in_{name}_table"
    yield f"stand_in_{name}_table:"
    for index in range(len(functions)):
        yield f"  .quad stand_in_{name}_unbound{index}"
    yield '  .section .note.GNU-stack, "", @progbits'


def sources_of_cudarc():
    """The folder of the bindings with which the program is built."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--features", "cuda"]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    packages = json.loads(subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE).stdout)["packages"]
    (manifest,) = [package["manifest_path"] for package in packages if package["name"] == "cudarc"]
    return os.path.dirname(manifest)


def functions_of(sources, module):
    with open(os.path.join(sources, "src", module, "sys", "mod.rs")) as file:
        return sorted(set(re.findall(r'extern "C" \{\s*fn (\w+)\(', file.read())))


def quoted(words):
    return ", ".join(f'"{word}"' for word in words)


def build(name, sources, destination):
    module, libraries, error = LIBRARIES[name]
    functions = functions_of(sources, module)
    assert functions, f"no function is listed in the bindings of {name}"
    fields = {"name": name, "functions": quoted(functions), "libraries": quoted(libraries), "error": error}
    compiler = os.environ.get("CC", "cc")
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for suffix, text in ((".S", "\n".join(assembly(name, functions)) + "\n"), (".c", RESOLVER % fields)):
            source = os.path.join(folder, name + suffix)
            with open(source, "w") as file:
                file.write(text)
            objects.append(source + ".o")
            subprocess.run([compiler, "-O2", "-fPIC", "-Wall", "-c", source, "-o", objects[-1]], check=True)
        archive = os.path.join(destination, f"lib{name}.a")
        if os.path.lexists(archive):
            os.remove(archive)
        subprocess.run(["ar", "rcs", archive, *objects], check=True)
    print(f"{archive}: {len(functions)} functions")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sources, destination = sources_of_cudarc(), sys.argv[1]
    for name in LIBRARIES:
        build(name, sources, destination)


main()
