"""``python -m gradclip``: versions, frameworks and a self-test; with ``report PATH``, what the log of a run says."""

import importlib
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import gradclip

# How each framework makes an array of a NumPy one.
FRAMEWORKS: dict[str, Callable[[Any], Callable[[Any], Any]]] = {
    "numpy": lambda numpy: numpy.asarray,
    "torch": lambda torch: torch.from_numpy,
    "tensorflow": lambda tensorflow: tensorflow.constant,
    "jax": lambda jax: jax.numpy.asarray,
}


def main() -> bool:
    """Print the report, and say whether a case failed."""
    print(f"gradclip {gradclip.__version__}, Python {platform.python_version()}, {platform.platform()}")
    failed = 0
    for name, array_of in FRAMEWORKS.items():
        try:
            framework = importlib.import_module(name)
        except ModuleNotFoundError:
            print(f"{name:10s}  not installed")
        except Exception as error:  # an installation may break in any way, and the report is to say how
            print(f"{name:10s}  cannot be imported: {type(error).__name__}: {error}")
        else:
            wrong = self_test(array_of(framework))
            failed += len(wrong)
            said = f"{len(wrong)} of {len(CASES)} cases FAILED" if wrong else f"all {len(CASES)} cases right"
            print(f"{name:10s}  {framework.__version__:12s}  {said}{_devices(name, framework)}")
            for line in wrong:
                print(f"            {line}")
    return failed > 0


def _devices(name: str, framework: Any) -> str:
    """The GPU that the framework would use, if it sees one."""
    if name == "torch" and framework.cuda.is_available():
        return f"; {framework.cuda.get_device_name()}"
    if name == "tensorflow" and (gpus := framework.config.list_physical_devices("GPU")):
        return f"; {len(gpus)} GPU"
    if name == "jax" and (device := framework.devices()[0]).platform != "cpu":
        return f"; {device.device_kind}"
    return ""


# The headline cases of the contract: gradients, what is done to them, and what must come out --------------------------

INF, NAN = math.inf, math.nan


def _clip(max_norm: float, **options: Any) -> Callable[[Any], Any]:
    return lambda g: gradclip.clip_by_global_norm(g, max_norm, **options).grads


CASES: dict[str, tuple[list[float], Callable[[Any], Any], Any]] = {
    "clipped to the threshold": ([3, 4], _clip(1.0), [0.6, 0.8]),
    "within the threshold, unchanged": ([3, 4], _clip(5.0), [3, 4]),
    "the norm before clipping": ([3, 4], lambda g: gradclip.clip_by_global_norm(g, 1.0).norm, 5),
    "squares that overflow": ([1e20, 2e20], _clip(1.0), [0.4472136, 0.8944272]),
    "squares that underflow": ([3e-30, 4e-30], _clip(1e-30), [0.6e-30, 0.8e-30]),
    "threshold 0": ([3, 4], _clip(0.0), [0, 0]),
    "threshold inf": ([3, 4], _clip(INF), [3, 4]),
    "a negative threshold": ([3, 4], _clip(-1.0), ValueError),
    "a threshold that is NaN": ([3, 4], _clip(NAN), ValueError),
    "NaN in the gradients": ([3, NAN], _clip(1.0), [NAN, NAN]),
    "infinity, set to zero": ([3, INF], _clip(1.0, nonfinite="zero"), [0, 0]),
    "infinity, reported": ([3, INF], _clip(1.0, nonfinite="raise"), gradclip.NonFiniteGradientError),
    "by value": ([3, -4], lambda g: gradclip.clip_by_value(g, 1.0), [1, -1]),
    "by each array's norm": ([3, 4], lambda g: gradclip.clip_by_norm([g, g], 1.0)[1], [0.6, 0.8]),
    "adaptively": ([3, 4], lambda g: gradclip.clip_adaptive(g, g, 0.1), [0.3, 0.4]),
}


def self_test(array: Callable[[Any], Any]) -> list[str]:
    """A line for each case that comes out wrong."""
    wrong = []
    for name, (raw, clip, want) in CASES.items():
        try:
            got = np.asarray(clip(array(np.array(raw, np.float32)))).tolist()
            right = not isinstance(want, type) and np.allclose(got, want, rtol=1e-6, atol=0, equal_nan=True)
        except Exception as error:
            got, right = f"{type(error).__name__}: {error}", type(error) is want
        if not right:
            wrong.append(f"{name}: {raw} gave {got}, not {want.__name__ if isinstance(want, type) else want}")
    return wrong


def report(arguments: Sequence[str]) -> int:
    """What the log of a run says about its threshold, and the exit code; no framework is imported for that."""
    from gradclip import report

    return report.main(arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["report"]:
        sys.exit(report(sys.argv[2:]))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's log would bury the report
    sys.exit(main())
