"""The operator of attention against softmax attention written out, by every kernel, and the choice of one."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from randomness import random
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from written_out import plain_attention

from ldlm import attention as module
from ldlm import compute
from ldlm.attention import attention, use_attention, without_xformers
from ldlm.compute import Compute
from ldlm.config import ComputeConfig
from ldlm.errors import InputError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
MODELS = [(7, 12, 64), (64, 4, 32), (128, 12, 64), (1024, 12, 64), (4096, 1, 64)]  # length, heads, width of a head


def inputs_of(queries: int, keys: int, heads: int = 2, width: int = 4, *, batch: int = 2) -> list[torch.Tensor]:
    """Queries, keys and values in float64, with gradients."""
    return [random(batch, n, heads, width, seed=i).requires_grad_() for i, n in enumerate((queries, keys, keys))]


def torchs_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention as torch's own function has it."""
    return scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def gradients(out: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Gradients of the output's product with a fixed direction."""
    direction = random(*out.shape, seed=9).to(out.device)
    return torch.autograd.grad((out * direction.to(out.dtype)).sum(), inputs)


# ----------------------------------------------------------------------------------------------------------------------
# What it computes


def test_attention_is_softmax_attention_without_a_mask():
    q, k, v = random(2, 3, 4, 6), random(2, 5, 4, 6, seed=1), random(2, 5, 4, 6, seed=2)
    assert torch.allclose(attention(q, k, v), plain_attention(q, k, v), atol=1e-12)
    assert torch.allclose(attention(q.float(), k.float(), v.float()).double(), plain_attention(q, k, v), atol=1e-5)


def test_attention_has_the_gradient_of_softmax_attention():
    inputs = inputs_of(3, 3)
    got, expected = (gradients(attend(*inputs), inputs) for attend in (attention, plain_attention))
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert torch.autograd.gradcheck(attention, inputs_of(2, 3, heads=1))


@pytest.mark.parametrize("inputs", [1, 2], ids=["denoiser", "resampler"])  # whose keys are [inputs; latents]
@pytest.mark.parametrize(("length", "heads", "width"), MODELS)
def test_attention_in_float32_is_softmax_attention_forward_and_backward_at_the_models_shapes(
    length, heads, width, inputs
):
    qkv = [x.detach().float().requires_grad_() for x in inputs_of(length, inputs * length, heads, width, batch=1)]
    found, expected = attention(*qkv), plain_attention(*qkv)
    for a, b in [(found, expected), *zip(gradients(found, qkv), gradients(expected, qkv), strict=True)]:
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_it_is_torchs_function_to_the_bit_forward_and_backward(dtype):
    """Also for the parts of one projection, which don't lie side by side, and for values of a head that don't."""
    wide = random(3, 17, 3 * 4 * 8).to(dtype).requires_grad_()
    for parts in (wide.chunk(3, dim=-1), [x.flip(1).transpose(1, 2).contiguous().mT for x in wide.chunk(3, dim=-1)]):
        q, k, v = (part.unflatten(-1, (4, 8)) for part in parts)
        found, expected = attention(q, k, v), torchs_attention(q.contiguous(), k.contiguous(), v.contiguous())
        assert torch.equal(found, expected)
        assert torch.equal(*(gradients(out, [wide])[0] for out in (found, expected)))


@pytest.mark.parametrize("queries", [torch.float32, torch.bfloat16])
def test_under_autocast_it_casts_as_torchs_function_does(queries):
    """The norms of queries and keys may give float32 beside values in half precision."""
    q, k, v = (x.detach().to(torch.bfloat16) for x in inputs_of(5, 7))
    q, k = q.to(queries), k.to(queries)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = attention(q, k, v), torchs_attention(q, k, v)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    with pytest.raises(RuntimeError):  # without it, a mixture is an error
        attention(q.float(), k.float(), v)


@pytest.mark.parametrize("queries", [3, 5])
def test_the_log_sum_exp_is_that_of_the_scores(queries):
    q, k, v = inputs_of(queries, 5)
    _, found = torch.ops.ldlm.attention(q, k, v, "sdpa")
    scores = torch.einsum("bnhk,blhk->bhnl", q, k) / math.sqrt(q.shape[-1])
    torch.testing.assert_close(found, scores.logsumexp(-1))
    assert not found.requires_grad


def test_the_flops_are_those_of_two_products_and_of_four():
    inputs = [x.detach().to("meta").requires_grad_() for x in inputs_of(5, 7, heads=3, width=4, batch=2)]
    one = 2 * (2 * 3 * 5 * 7 * 4)  # a product, of as many multiplications and additions
    with FlopCounterMode(display=False) as counter:
        out = attention(*inputs)
        assert counter.get_total_flops() == 2 * one
        out.sum().backward()
    assert counter.get_total_flops() == 6 * one


# ----------------------------------------------------------------------------------------------------------------------
# What the compiler and torch's other machinery make of it


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_operators_keep_to_what_torch_asks_of_one(dtype):
    inputs = [x.detach().to(dtype).requires_grad_() for x in inputs_of(3, 5)]
    torch.library.opcheck(torch.ops.ldlm.attention.default, (*inputs, "sdpa"))
    out, logsumexp = torch.ops.ldlm.attention(*inputs, "sdpa")
    saved = [x.detach() for x in (out, *inputs, out, logsumexp)]
    torch.library.opcheck(torch.ops.ldlm.attention_backward.default, (*saved, "sdpa"))


@pytest.fixture
def compiled():
    """Compile into one graph, without the code generation, which takes long."""
    torch._dynamo.reset()

    def into_one_graph(function, **options):
        return torch.compile(function, fullgraph=True, backend="aot_eager", **options)

    yield into_one_graph
    torch._dynamo.reset()


def test_it_is_one_node_of_a_graph_that_serves_shapes_of_all_sizes(compiled):
    def block(q, k, v):
        return 2 * attention(q, k, v)

    whole = compiled(block, dynamic=True)
    for number, (queries, keys, batch) in enumerate([(3, 7, 5), (8, 11, 6), (13, 9, 10)]):
        inputs = inputs_of(queries, keys, batch=batch)
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            found = whole(*inputs)
        expected = 2 * plain_attention(*inputs)
        for a, b in zip((found, *gradients(found, inputs)), (expected, *gradients(expected, inputs)), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("under", ["checkpoint", "compiled checkpoint", "compiled autocast"])
def test_recomputed_and_compiled_attention_has_the_same_gradient_to_the_bit(under, compiled):
    def recomputed(q, k, v):
        return checkpoint(attention, q, k, v, use_reentrant=False)

    def rounded(q, k, v):
        with torch.autocast("cpu", torch.bfloat16):
            return attention(q, k, v)

    function = rounded if "autocast" in under else recomputed
    attend = compiled(function) if "compiled" in under else function
    inputs = [x.detach().float().requires_grad_() for x in inputs_of(3, 5)]
    expected = (rounded if "autocast" in under else attention)(*inputs)
    found = attend(*inputs)
    for a, b in zip((found, *gradients(found, inputs)), (expected, *gradients(expected, inputs)), strict=True):
        assert torch.equal(a, b)


# ----------------------------------------------------------------------------------------------------------------------
# The kernels of a GPU, as far as they can be followed without one: torch knows their signatures and shapes


@pytest.mark.parametrize("width", [64, 6])
@pytest.mark.parametrize("flash", [True, False])
def test_torchs_kernels_for_gpus_are_called_as_they_want_it(flash, width, monkeypatch):
    monkeypatch.setattr(module, "_flash", lambda *_: flash)
    q, k, v = (x.detach().to("meta", torch.bfloat16) for x in inputs_of(33, 40, width=width))
    out, logsumexp = module._torch_forward(q, k, v)
    found = [out, logsumexp, *module._torch_backward(out, q, k, v, out, logsumexp)]
    told = torch.ops.ldlm.attention(q, k, v, "sdpa")
    told += torch.ops.ldlm.attention_backward(out, q, k, v, out, logsumexp, "sdpa")
    assert [(x.shape, x.stride(), x.dtype) for x in found] == [(x.shape, x.stride(), x.dtype) for x in told]


@pytest.fixture
def pretended(monkeypatch):
    """Tensors of a GPU of compute capability 9.0 that have shapes only."""
    for known in (module._xformers_kernels, module._flash):
        known.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with FakeTensorMode():
        yield
    for known in (module._xformers_kernels, module._flash):
        known.cache_clear()


def test_xformers_says_itself_what_it_takes_and_is_called_as_it_wants_it(pretended):
    """In a build of torch for CPUs it has none, and takes nothing; `make test-floor` has a build for GPUs."""
    built = torch.version.cuda is not None
    assert (without_xformers(CUDA) is None) == built
    assert without_xformers(CUDA, {64, 12}) == f"has no kernel for heads of width {12 if built else 64} here"
    assert module._xformers_kernels(CUDA, torch.float32, 64) is None
    if built:
        q, k = (torch.empty(2, length, 3, 64, device=CUDA, dtype=torch.bfloat16) for length in (33, 40))
        out, logsumexp = module._cuda_forward(q, k, k, "xformers")
        assert (out.shape, logsumexp.shape) == ((2, 33, 3, 64), (2, 3, 33))
        backward = module._cuda_backward(out, q, k, k, out, logsumexp, "xformers")
        assert [x.shape for x in backward] == [q.shape, k.shape, k.shape]


# ----------------------------------------------------------------------------------------------------------------------
# The choice of a kernel


def test_xformers_is_imported_without_a_word():
    """It warns where its own kernels were built for another CUDA, or for none."""
    program = "from ldlm import attention; print(attention._fmha() is not None)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout.strip() in ("True", "False"), done.stderr) == (True, "")


@pytest.fixture
def kernels(monkeypatch):
    """A GPU of the given compute capability, with xformers or without, whose kernels take heads of at most 64."""

    def here(capability: tuple[int, int] = (8, 0), *, installed: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(module, "_fmha", lambda: object() if installed else None)
        monkeypatch.setattr(module, "_xformers_kernels", lambda _, __, width: (1, 2) if width <= 64 else None)

    monkeypatch.setattr(module, "_kernel", "sdpa")
    monkeypatch.setattr(compute, "_told", set())
    return here


@pytest.mark.parametrize("compile", ["auto", "on", "off"])
def test_in_half_precision_a_gpu_takes_xformers_compiled_or_not(kernels, compile, notes):
    kernels()
    found = Compute.of(ComputeConfig(precision="bf16", compile=compile), CUDA, {32, 64})
    assert (found.attention, found.compiled, module._kernel) == ("xformers", compile != "off", "xformers")
    asked = ComputeConfig(precision="bf16", compile=compile, attention="xformers")
    assert Compute.of(asked, CUDA, {32, 64}) == found
    found.tell(notes)
    assert notes.lines == []


@pytest.mark.parametrize("settings", [{"precision": "fp32"}, {"precision": "bf16", "attention": "sdpa"}])
def test_float32_and_who_asks_for_it_get_torchs_kernel_without_a_word(kernels, settings, notes):
    kernels()
    found = Compute.of(ComputeConfig(**settings), CUDA)
    found.tell(notes)
    assert (found.attention, notes.lines) == ("sdpa", [])


@pytest.mark.parametrize(
    ("gpu", "width", "reason"),
    [
        ({"installed": False}, 64, "can't be imported here (pip install xformers)"),
        ({"capability": (7, 5)}, 64, "needs a GPU of compute capability 8.0 or more"),
        ({}, 128, "has no kernel for heads of width 128 here"),
    ],
)
def test_where_xformers_has_none_auto_takes_torchs_kernel_and_says_so_once(kernels, gpu, width, reason, notes):
    kernels(**gpu)
    for _ in range(2):
        found = Compute.of(ComputeConfig(precision="bf16"), CUDA, {64, width})
        found.tell(notes)
    assert (found.attention, module._kernel) == ("sdpa", "sdpa")
    assert notes.lines == [f"attention is computed by torch's kernels, since xformers {reason}"]
    with pytest.raises(InputError, match=r"--attention xformers .*; use --attention sdpa, or auto") as refused:
        Compute.of(ComputeConfig(precision="bf16", attention="xformers"), CUDA, {64, width})
    assert reason in str(refused.value)


# ----------------------------------------------------------------------------------------------------------------------
# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("inputs", [1, 2], ids=["denoiser", "resampler"])
@pytest.mark.parametrize(("length", "heads", "width"), [*MODELS, (2048, 4, 64), (16, 2, 8), (16, 2, 6)])
@pytest.mark.parametrize(
    ("kernel", "dtype", "tolerance"),
    [("xformers", torch.bfloat16, 1e-2), ("sdpa", torch.bfloat16, 1e-2), ("sdpa", torch.float32, 1e-4)],
)
def test_kernels_on_a_gpu_are_softmax_attention_forward_and_backward(
    kernel, dtype, tolerance, length, heads, width, inputs, monkeypatch
):
    """Against float64, of the same rounded inputs."""
    monkeypatch.setattr(module, "_kernel", "sdpa")
    use_attention(kernel, torch.device("cuda"))
    given = inputs_of(length, inputs * length, heads, width)
    qkv = [x.detach().to("cuda", dtype).requires_grad_() for x in given]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    found, expected = attention(*qkv), plain_attention(*exact)
    for a, b in [(found, expected), *zip(gradients(found, qkv), gradients(expected, exact), strict=True)]:
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= tolerance * b.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["xformers", "sdpa"])
def test_compiled_on_a_gpu_it_is_one_graph_with_the_same_numbers(kernel, monkeypatch):
    monkeypatch.setattr(module, "_kernel", "sdpa")
    use_attention(kernel, torch.device("cuda"))
    torch._dynamo.reset()
    qkv = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in inputs_of(100, 200, 4, 64)]
    whole = torch.compile(attention, fullgraph=True, dynamic=False)
    for a, b in zip(
        (whole(*qkv), *gradients(whole(*qkv), qkv)), (attention(*qkv), *gradients(attention(*qkv), qkv)), strict=True
    ):
        assert (a - b).norm() <= 1e-3 * b.norm()
