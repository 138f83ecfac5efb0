"""Decides what can be compiled here and compiles it. Metadata is in pyproject.toml.

* torch importable: `ssmvdm_kernels/_C`, the C++ CPU kernels.
* and nvcc with a CUDA build of torch, or FORCE_CUDA=1: `ssmvdm_kernels/_C_cuda`, the CUDA kernels.
* torch absent (pip's isolated build), torch too old, or no C++ compiler: a pure Python wheel and one line saying so.

Both libraries use only the LibTorch stable ABI and no Python C API, so one wheel serves every torch >= 2.11 and every
Python >= 3.10. Kernels in .cu files include no torch header and are compiled by calling nvcc directly, so a CUDA wheel
can be built where torch is a CPU build.

Environment: MAX_JOBS, NVCC_THREADS, TORCH_CUDA_ARCH_LIST, CUDA_HOME, CXX, FORCE_CUDA, SSMVDM_SKIP_CUDA_BUILD, and
SSMVDM_PURE_PYTHON, which compiles nothing.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
PACKAGE = "ssmvdm_kernels"
CPU_MODULE, CUDA_MODULE = f"{PACKAGE}._C", f"{PACKAGE}._C_cuda"
OLDEST_TORCH = (2, 11)
DEFAULT_CUDA_ARCHITECTURES = ("8.0", "9.0", "10.0", "12.0")
REMEDY = "To get the kernels: install torch >= 2.11 and a C++20 compiler, then `pip install --no-build-isolation .`"
BUILD_COMMANDS = {"build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop"}


@dataclass(frozen=True)
class Toolchain:
    """What this machine offers. `torch_problem` and `cxx_problem` are None when usable, else half a sentence."""

    torch_problem: str | None
    torch_cuda: str | None  # CUDA version torch was built with
    cxx_problem: str | None
    nvcc: str | None


@dataclass(frozen=True)
class Plan:
    cpu: bool
    cuda: bool
    is_cuda_forced: bool
    notes: tuple[str, ...] = ()


def is_on(env, name):
    return env.get(name, "").strip().lower() not in ("", "0", "false", "off", "no")


def plan_build(tools, env):
    """Which extensions to build, from what is here and what was asked for. Only an impossible FORCE_CUDA ends in
    SystemExit."""
    if is_on(env, "SSMVDM_PURE_PYTHON"):
        return Plan(False, False, False, ("building without compiled kernels, as SSMVDM_PURE_PYTHON asks.",))
    is_forced = is_on(env, "FORCE_CUDA")
    problem = tools.torch_problem or tools.cxx_problem
    if is_forced:
        blocker = problem
        if blocker is None and is_on(env, "SSMVDM_SKIP_CUDA_BUILD"):
            blocker = "SSMVDM_SKIP_CUDA_BUILD is set too"
        if blocker is None and tools.nvcc is None:
            blocker = "nvcc was not found (set CUDA_HOME to the CUDA toolkit)"
        if blocker is not None:
            raise SystemExit(f"ssmvdm-kernels: FORCE_CUDA is set, but the CUDA kernels cannot be built: {blocker}.")
        return Plan(cpu=True, cuda=True, is_cuda_forced=True)
    if problem is not None:
        return Plan(False, False, False, (f"building without compiled kernels: {problem}. {REMEDY}",))
    if is_on(env, "SSMVDM_SKIP_CUDA_BUILD"):
        return Plan(True, False, False, ("building the CPU kernels; CUDA is skipped by SSMVDM_SKIP_CUDA_BUILD.",))
    if tools.torch_cuda is None:
        return Plan(True, False, False, ("building the CPU kernels; torch here has no CUDA (FORCE_CUDA=1 overrides).",))
    if tools.nvcc is None:
        note = f"building the CPU kernels only: torch has CUDA {tools.torch_cuda}, but nvcc was not found (CUDA_HOME)."
        return Plan(True, False, False, (note,))
    return Plan(cpu=True, cuda=True, is_cuda_forced=False)


def inspect_torch():
    """(problem or None, CUDA version or None) of the torch this build would compile against."""
    try:
        import torch
    except Exception as error:  # a torch that is there but broken must not break the installation
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            return "torch is not installed in the build environment", None
        return f"torch cannot be imported ({error})", None
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST_TORCH:
        return f"torch {torch.__version__} is older than 2.11", None
    return None, torch.version.cuda


def find_cxx(env):
    """Problem or None. Leaves a missing `c++` alias, which torch's builder calls by default, replaced through CXX."""
    if sys.platform == "win32":
        return None  # setuptools finds MSVC through the registry; a failure there is caught at compile time
    if "CXX" in env:
        program = (env["CXX"].split() or [""])[-1]  # the last word: CXX may be "ccache g++"
        is_there = shutil.which(program, path=env.get("PATH")) is not None
        return None if is_there else f"the C++ compiler CXX={env['CXX']} was not found"
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name, path=env.get("PATH")):
            if name != "c++":
                env["CXX"] = name
            return None
    return "no C++ compiler was found"


def find_nvcc(env):
    for home in (env.get("CUDA_HOME"), env.get("CUDA_PATH")):
        if home:
            return shutil.which("nvcc", path=str(Path(home) / "bin"))
    return shutil.which("nvcc", path=env.get("PATH")) or shutil.which("nvcc", path="/usr/local/cuda/bin")


def architectures(requested, supported):
    """The entries of a TORCH_CUDA_ARCH_LIST such as "8.0;9.0+PTX". None or empty: the defaults that are among
    `supported` (nvcc's list, "sm_90" and so on), with PTX for the newest."""
    entries = [entry for entry in re.split(r"[;,\s]+", requested or "") if entry]
    if not entries:
        known = [arch for arch in DEFAULT_CUDA_ARCHITECTURES if "sm_" + arch.replace(".", "") in supported]
        if not known:
            raise ValueError(f"this nvcc supports none of the architectures {', '.join(DEFAULT_CUDA_ARCHITECTURES)}")
        entries = [*known[:-1], known[-1] + "+PTX"]
    for entry in entries:
        if re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", entry) is None:
            raise ValueError(f'TORCH_CUDA_ARCH_LIST: expected entries like "9.0" or "9.0+PTX", got "{entry}"')
    return entries


def architecture_flags(entries):
    """The -gencode flags of `architectures`."""
    flags = []
    for entry in entries:
        number = entry.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def cuda_architectures(nvcc, env):
    supported = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return architectures(env.get("TORCH_CUDA_ARCH_LIST"), supported)


def compile_cuda(nvcc, entries, folder, env):
    """Compiles csrc/cuda/*.cu side by side and returns the objects; one newer than all that it was made of stays."""
    is_windows = sys.platform == "win32"
    host_flags = "/MD" if is_windows else f"-fPIC,-fvisibility=hidden,-ffile-prefix-map={ROOT}=."
    command = [nvcc, "-c", "-O3", "-std=c++20", "-Xcompiler", host_flags, "-I", str(ROOT / "csrc")]
    command += ["--threads", env.get("NVCC_THREADS", "1")]
    command += architecture_flags(entries)
    folder = Path(folder) / ("cuda-" + hashlib.sha256(" ".join(command).encode()).hexdigest()[:8])
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source):
        target = folder / (source.stem + (".obj" if is_windows else ".o"))
        rule = target.with_suffix(".d")
        if not is_current(target, rule):
            outputs = ["-MMD", "-MF", str(rule), "-o", str(target)]
            result = subprocess.run([*command, str(source), *outputs], capture_output=True, text=True)
            sys.stderr.write(result.stdout + result.stderr)
            if result.returncode:
                raise RuntimeError(f"nvcc failed on {source.relative_to(ROOT)}")
        return str(target)

    with ThreadPoolExecutor(int(env.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        return list(pool.map(compile_one, sorted((ROOT / "csrc/cuda").glob("*.cu"))))


def is_current(target, rule):
    """Whether an object is newer than every file in the make rule that its compiler wrote."""
    if not (target.exists() and rule.exists()):
        return False
    words = re.split(r"(?<!\\)\s+", rule.read_text().replace("\\\n", " ").partition(": ")[2].strip())
    inputs = [Path(word.replace("\\ ", " ")) for word in words]
    return all(path.exists() and path.stat().st_mtime < target.stat().st_mtime for path in inputs)


def find_sources(*suffixes):
    return sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in suffixes)


def cudart_folders(nvcc):
    """Where nvcc itself looks for the CUDA runtime, whatever the toolkit's layout (system, conda, pip)."""
    output = subprocess.run([nvcc, "--dryrun", "-c", "any.cu"], capture_output=True, text=True)
    return re.findall(r'"(?:-L|/LIBPATH:)([^"]+)"', output.stdout + output.stderr)


def make_extension(name, sources, **options):
    import torch
    from torch.utils.cpp_extension import CppExtension

    defines = ["TORCH_TARGET_VERSION=0x020b000000000000", "TORCH_STABLE_ONLY"]
    if sys.platform == "win32":
        flags = ["/O2", "/std:c++20", "/Zc:__cplusplus", "/Zc:preprocessor", *(f"/D{define}" for define in defines)]
    else:
        flags = ["-O2", "-g0", "-std=c++20", "-ffp-contract=off", "-fvisibility=hidden"]
        flags += [f"-D{define}" for define in defines]
        flags += [f"-ffile-prefix-map={ROOT}=.", f"-ffile-prefix-map={Path(torch.__file__).parent}=torch"]
        flags += ["-Wno-uninitialized"]  # GCC 12 warns, by the hundred, inside its own AVX-512 header
    # py_limited_api also makes torch's builder define Py_LIMITED_API=0x030A0000.
    extension = CppExtension(
        name,
        [str(path.relative_to(ROOT)) for path in sources],
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=flags,
        depends=[str(path.relative_to(ROOT)) for path in find_sources(".h", ".inc")],
        py_limited_api=True,
        **options,
    )
    extension.optional = True  # a failed compile leaves the other library and the Python code installable
    return extension


def make_extensions(plan, tools):
    csrc = ROOT / "csrc"
    extensions = []
    if plan.cpu:
        sources = [*csrc.glob("*.cpp"), *(csrc / "cpu").glob("*.cpp")]
        extensions.append(make_extension(CPU_MODULE, sorted(sources)))
    if plan.cuda:
        link = [] if sys.platform == "win32" else ["-Wl,--exclude-libs,ALL", "-ldl", "-lrt", "-lpthread"]
        extensions.append(
            make_extension(
                CUDA_MODULE,
                sorted((csrc / "cuda").glob("*.cpp")),
                libraries=["cudart_static"],
                library_dirs=cudart_folders(tools.nvcc),
                extra_link_args=link,
            )
        )
    return extensions


def make_builder(plan, tools):
    from torch.utils.cpp_extension import BuildExtension

    class BuildKernels(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            if self.editable_mode:  # pip gives a fresh temporary folder; a fixed one keeps rebuilds incremental
                self.build_temp = str(ROOT / "build" / "editable")

        def run(self):
            self.remove_libraries(Path(self.build_lib) / PACKAGE)
            super().run()

        def copy_extensions_to_source(self):
            # Unlinked, never overwritten: a process that has the old library mapped keeps running.
            self.remove_libraries(ROOT / PACKAGE)
            super().copy_extensions_to_source()

        @staticmethod
        def remove_libraries(folder):
            for pattern in ("_C*.so", "_C*.pyd"):
                for library in folder.glob(pattern):
                    library.unlink()

        def get_export_symbols(self, ext):
            return ext.export_symbols  # loaded by torch.ops.load_library: on Windows too there is no PyInit to export

        def build_extension(self, ext):
            try:
                if ext.name == CUDA_MODULE:
                    entries = cuda_architectures(tools.nvcc, os.environ)
                    ext.define_macros.append(("SSMVDM_ARCHITECTURES", ":".join(entries)))
                    ext.extra_objects = compile_cuda(tools.nvcc, entries, self.build_temp, os.environ)
                super().build_extension(ext)
            except Exception as error:
                if ext.name == CUDA_MODULE and plan.is_cuda_forced:
                    sentence = f"FORCE_CUDA is set, but the CUDA kernels cannot be built: {error}."
                    raise SystemExit(f"ssmvdm-kernels: {sentence}") from error
                say(f"{ext.name} could not be compiled and is left out ({error}). {REMEDY}")

    return BuildKernels


def say(line):
    print(f"ssmvdm-kernels: {line}", file=sys.stderr)


def main():
    os.chdir(ROOT)
    options = {}
    if BUILD_COMMANDS & set(sys.argv):  # metadata and sdist need neither torch nor a compiler
        torch_problem, torch_cuda = inspect_torch()
        tools = Toolchain(torch_problem, torch_cuda, find_cxx(os.environ), find_nvcc(os.environ))
        plan = plan_build(tools, os.environ)
        for note in plan.notes:
            say(note)
        if plan.cpu:
            options = {
                "ext_modules": make_extensions(plan, tools),
                "cmdclass": {"build_ext": make_builder(plan, tools)},
                "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
            }
    setup(**options)


if __name__ == "__main__":
    main()
