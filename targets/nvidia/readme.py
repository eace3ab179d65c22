"""The page beside an engine: how trtexec builds and times it, how Python runs it, without this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphcompress.targets.nvidia.engine_profile import Profile

_PAGE = """\
# For NVIDIA's TensorRT

| file | what it is |
|---|---|
| `model.onnx` | the graph, strongly typed: int8 products between Quantize and Dequantize, else {precision} |
| `model-sm*.engine` | engines, each for the capability in its name and the version that compiled it |
| `build.json` | which int8 products each engine has |
| `report.html`, `graphcompress.json`, `recipe.toml` | what was done to the model, and how to do it again |
{engines}
## Compile for this machine's GPU

```sh
trtexec --onnx=model.onnx --stronglyTyped --saveEngine=model.engine{shapes}
```

## Time it

```sh
{timed}
```

## Run it from Python

```python
import numpy, pathlib, tensorrt, torch

runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
engine = runtime.deserialize_cuda_engine(pathlib.Path("model.engine").read_bytes())
context = engine.create_execution_context()
names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
nothing = torch.empty(1, device="cuda")  # where an empty past lies

def run(feed{phase}):  # input name → numpy array
{choice}    tensors = {{name: torch.as_tensor(feed[name]).cuda().contiguous() for name in inputs}}
    for name in inputs:
        context.set_input_shape(name, tuple(tensors[name].shape))
    for name in set(names) - set(inputs):
        dtype = torch.from_numpy(numpy.empty(0, tensorrt.nptype(engine.get_tensor_dtype(name)))).dtype
        tensors[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda")
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr() or nothing.data_ptr())
    context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return {{name: tensors[name].cpu().numpy() for name in names if name not in inputs}}
```

An engine of TensorRT for RTX is loaded by `tensorrt_rtx` in place of `tensorrt`. Inputs: {inputs}.
"""


_CHOICE = """\
    # {profiles}
    context.set_optimization_profile_async(profile, torch.cuda.current_stream().cuda_stream)
"""


def readme(
    profiles: Mapping[str, Profile], inputs: Sequence[str], precision: str, engines: Sequence[str]
) -> str:
    """The page for a graph with these ``inputs``; ``profiles`` of variable ones, by what each is for."""
    none = "\nNo engine was compiled here: the first command below compiles one.\n"
    several = len(profiles) > 1
    numbered = ", ".join(f"profile {number}: {phase}" for number, phase in enumerate(profiles))
    return _PAGE.format(
        precision=precision,
        engines="" if engines else none,
        shapes="".join(
            (f" \\\n  --profile={number}" if several else "")
            + "".join(
                f" \\\n  --{name}Shapes={_shapes(profile, index)}"
                for index, name in enumerate(("min", "opt", "max"))
            )
            for number, profile in enumerate(profiles.values())
        ),
        timed="\n".join(
            f"trtexec --loadEngine=model.engine --shapes={_shapes(profile, 1)}"
            + (f" --useProfile={number}" if several else "")
            for number, profile in enumerate(profiles.values())
        )
        or "trtexec --loadEngine=model.engine",
        phase=", profile" if several else "",
        choice=_CHOICE.format(profiles=numbered) if several else "",
        inputs=", ".join(inputs),
    )


def _shapes(profile: Profile, index: int) -> str:
    """``input_ids:1x128,attention_mask:1x128``."""
    return ",".join(f"{name}:{'x'.join(map(str, shapes[index]))}" for name, shapes in profile.items())
