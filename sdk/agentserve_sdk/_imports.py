"""Do something to a module as soon as it is imported, or now if it already is.

Rule: an import succeeds or fails as it would without this; what the callback does wrong is logged.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional

from agentserve_sdk._client import log

_waiting: Dict[str, List[Callable[[ModuleType], None]]] = {}


def when_imported(name: str, callback: Callable[[ModuleType], None]) -> None:
    """Call back with the module, once."""
    module = sys.modules.get(name)
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        _call(callback, module)
        return
    _waiting.setdefault(name, []).append(callback)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _call(callback: Callable[[ModuleType], None], module: ModuleType) -> None:
    try:
        callback(module)
    except Exception:
        log.debug("agentserve could not hook into %s", module.__name__, exc_info=True)


class _Finder:
    """Lets the other finders find the module, and adds a word to the end of its loading."""

    def find_spec(
        self, name: str, path: Any = None, target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if name not in _waiting:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if find is None else find(name, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    _afterwards(spec.loader, name)
                return spec  # type: ignore[no-any-return]
        return None


def _afterwards(loader: Any, name: str) -> None:
    loads = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        loads(module)
        for callback in _waiting.pop(name, ()):
            _call(callback, module)

    try:
        loader.exec_module = exec_module
    except AttributeError:
        log.debug("agentserve cannot follow the loading of %s", name)
