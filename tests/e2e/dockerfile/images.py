"""Root folders that stand in for the images that a Dockerfile begins with.

Each is a copy of the machine's own distribution, as debootstrap installs it, with what the image adds. Only what is written here
is known of an image.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("runtime-requirements.txt")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Components that the image of Rust lacks, and a toolchain for development has.
DEVELOPMENT = re.compile("clippy|rustfmt|rust-docs|rust-src|rust-analyzer|llvm-tools")


def rust(builder, stage, match):
    """The machine's toolchain as rustup's profile `minimal` installs it. The image also has certificates and gcc; here
    the file must install what it needs.
    """
    version, root = match.group(1), stage.root
    machine = subprocess.run(["rustc", "--version"], cwd=builder.context, check=True, capture_output=True, text=True).stdout
    if machine.split()[1] != version:
        raise RuntimeError(f"the image has Rust {version}, and this machine {machine.strip()}")
    stage.environment |= {
        "RUSTUP_HOME": "/usr/local/rustup",
        "CARGO_HOME": "/usr/local/cargo",
        "PATH": f"/usr/local/cargo/bin:{PATH}",
        "RUST_VERSION": version,
    }
    sysroot = Path(
        subprocess.run(
            ["rustc", "--print", "sysroot"], cwd=builder.context, check=True, capture_output=True, text=True
        ).stdout.strip()
    )
    toolchain = f"{version}-x86_64-unknown-linux-gnu"
    place = root / "usr/local/rustup/toolchains" / toolchain
    place.mkdir(parents=True)
    # Seen by commands alone: it is large, and nothing copies it.
    stage.mounts.append((sysroot, place))
    records = builder.folder / "rustup"
    records.mkdir()
    for file, text in minimal(sysroot / "lib/rustlib"):
        (records / file).write_text(text)
        stage.mounts.append((records / file, place / "lib/rustlib" / file))
    settings = f'version = "12"\ndefault_toolchain = "{toolchain}"\nprofile = "minimal"\n\n[overrides]\n'
    (root / "usr/local/rustup/settings.toml").write_text(settings)

    programs = root / "usr/local/cargo/bin"
    programs.mkdir(parents=True)
    # Without rustup, its programs are the toolchain's own.
    rustup = shutil.which("rustup")
    if rustup:
        shutil.copy2(os.path.realpath(rustup), programs / "rustup")
    for name in ["cargo", "rustc", "rustdoc"]:
        (programs / name).symlink_to("rustup" if rustup else f"/usr/local/rustup/toolchains/{toolchain}/bin/{name}")


def minimal(folder):
    """rustup's records of a toolchain, without the components for development, as if those were not there."""
    components = folder / "components"
    if components.exists():
        names = components.read_text().splitlines()
        yield components.name, "".join(f"{name}\n" for name in names if not DEVELOPMENT.search(name))
    configuration = folder / "multirust-config.toml"
    if configuration.exists():
        parts = configuration.read_text().split("[[components]]")
        yield configuration.name, "[[components]]".join(part for part in parts if not DEVELOPMENT.search(part))


def cuda_runtime(builder, stage, match):
    """CUDA's libraries on request only: they are large, and the program loads none where there is no GPU."""
    stage.environment |= {
        "PATH": f"/usr/local/nvidia/bin:/usr/local/cuda/bin:{PATH}",
        "LD_LIBRARY_PATH": "/usr/local/nvidia/lib:/usr/local/nvidia/lib64",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "CUDA_VERSION": match.group(1),
    }
    if builder.has_libraries:
        if match.group(1) not in REQUIREMENTS.read_text():
            raise RuntimeError(f"{REQUIREMENTS.name} is not for CUDA {match.group(1)}")
        wheels = builder.folder / "runtime"
        options = ["--quiet", "--no-cache-dir", "--no-compile", "--root-user-action=ignore", "--disable-pip-version-check"]
        options += ["--only-binary", ":all:", "--require-hashes", "--no-deps"]
        pip = [sys.executable, "-m", "pip", "install", *options, "--target", wheels, "--requirement", REQUIREMENTS]
        subprocess.run(pip, check=True)
        (stage.root / "usr/local/cuda").mkdir()
        (wheels / "nvidia/cu13/lib").rename(stage.root / "usr/local/cuda/lib64")


STAND_INS = [
    (re.compile(r"rust:(\d+\.\d+\.\d+)-slim-bookworm"), rust),
    (re.compile(r"nvidia/cuda:(\d+\.\d+\.\d+)-runtime-ubuntu24\.04"), cuda_runtime),
]


def stand_in(name):
    """What makes the root folder of an image, and how its name matched; nothing for one that is not known."""
    for pattern, make in STAND_INS:
        if match := pattern.fullmatch(name):
            return make, match
    return None
