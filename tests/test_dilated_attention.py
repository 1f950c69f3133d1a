"""Dilated attention against slow arithmetic: loops in float64 first, then the dense reference."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from slimbench.encoders import attention_backends as kernels
from slimbench.encoders import attention_rows
from slimbench.encoders import dilated_attention as module
from slimbench.encoders.attention_backends import backend
from slimbench.encoders.attention_rows import plan_rows
from slimbench.encoders.dilated_attention import (
    MODES,
    attended_pairs,
    check_branches,
    dilated_attention,
    dilated_attention_reference,
    visible,
)
from slimbench.encoders.reachability import attended
from slimbench.errors import UsageError

SEGMENTS, RATIOS = (1024, 2048, 4096, 8192, 16384), (1, 2, 4, 8, 16)
CPU = torch.device("cpu")

branches = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from((1, 2, 3, 4, 8))).map(lambda b: (b[0] * b[1], b[1])),
    min_size=1,
    max_size=4,
).map(lambda found: tuple(zip(*found, strict=True)))
slides = st.one_of(
    st.integers(1, 90).map(lambda length: (length,)),
    st.lists(st.integers(1, 40), min_size=2, max_size=6).map(tuple),
)


def fused(
    tokens: int, heads: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> torch.Tensor:
    """[T, 3, H, d] as a linear layer leaves it."""
    draw = torch.Generator().manual_seed(seed)
    qkv = torch.randn(tokens, 3, heads, width, dtype=torch.float64, generator=draw)
    return qkv.to(dtype).requires_grad_()


def by_loops(q, k, v, segments, ratios, zero_keys):
    """One slide as torchscale does it: zero rows appended for real; each branch, then their weights."""
    length, heads, width = q.shape
    out = torch.zeros_like(q)
    for h in range(heads):
        for i in range(length):
            keys = []
            for segment, ratio in zip(segments, ratios, strict=True):
                segment = min(segment, length)
                begin, offset = i // segment * segment, h // math.ceil(heads / ratio)
                if (i - begin) % ratio != offset:
                    continue
                for j in range(begin + offset, begin + math.ceil(segment / ratio) * ratio, ratio):
                    if j < min(begin + segment, length):
                        keys.append((float(q[i, h] @ k[j, h]) / width**0.5, v[j, h]))
                    elif zero_keys:
                        keys.append((0.0, torch.zeros(width, dtype=v.dtype)))
            if keys:
                weight = torch.tensor([logit for logit, _ in keys], dtype=torch.float64).softmax(0)
                out[i, h] = sum(w * value for w, (_, value) in zip(weight, keys, strict=True))
    return out


@pytest.mark.parametrize("padding", MODES)
@pytest.mark.parametrize(
    ("length", "heads", "segments", "ratios"),
    [(21, 4, (4, 8), (1, 2)), (13, 5, (6, 9, 16), (2, 3, 4)), (7, 3, (8,), (2,)), (1, 2, (4, 4), (1, 4))],
)
def test_the_reference_is_what_loops_over_queries_and_keys_give(length, heads, segments, ratios, padding):
    q, k, v = fused(length, heads, 3).detach().unbind(1)
    expected = by_loops(q, k, v, segments, ratios, padding == "torchscale")
    found = dilated_attention_reference(q, k, v, segments, ratios, padding=padding)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(slides, st.integers(1, 9), st.integers(1, 9), branches, st.booleans(), st.integers(0, 2**31))
def test_output_and_gradient_are_those_of_the_dense_reference(lengths, heads, width, found, sized, seed):
    segments, ratios = found
    qkv = fused(sum(lengths), heads, width, seed=seed)
    log_size = torch.rand(len(qkv)) * 3 if sized else None
    weight = fused(len(qkv), heads, width, seed=seed + 1).detach()[:, 0]
    for padding in MODES:
        for gradient in MODES:
            how = {"lengths": lengths, "log_size": log_size, "padding": padding, "gradient": gradient}
            ours = dilated_attention(*qkv.unbind(1), segments, ratios, **how)
            truth = dilated_attention_reference(*qkv.unbind(1), segments, ratios, **how)
            torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)
            d_ours, d_truth = (torch.autograd.grad(x, qkv, weight)[0] for x in (ours, truth))
            torch.testing.assert_close(d_ours, d_truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", [(1700,), (1000, 850)])
@pytest.mark.parametrize("padding", MODES)
def test_segments_longer_than_the_blocks_of_the_kernel_are_exact_too(lengths, padding):
    qkv = fused(sum(lengths), 2, 8)
    how = {"segments": (800, 1600), "ratios": (1, 2), "lengths": lengths, "padding": padding}
    ours = dilated_attention(*qkv.unbind(1), **how)
    truth = dilated_attention_reference(*qkv.unbind(1), **how)
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)
    d_ours, d_truth = (torch.autograd.grad(x.square().sum(), qkv)[0] for x in (ours, truth))
    torch.testing.assert_close(d_ours, d_truth, rtol=0, atol=1e-12)


def test_the_two_gradients_differ():
    qkv = fused(50, 4, 8)
    exact, detached = (
        torch.autograd.grad(
            dilated_attention(*qkv.unbind(1), (8, 32), (1, 4), gradient=gradient).square().sum(), qkv
        )[0]
        for gradient in MODES
    )
    assert (exact - detached)[:, :2].norm() > 0.01 * exact[:, :2].norm()
    torch.testing.assert_close(exact[:, 2], detached[:, 2], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.01), (torch.float16, 0.002)]
)
@pytest.mark.parametrize("lengths", [(700,), (300, 170, 513)])
@pytest.mark.parametrize("padding", MODES)
def test_lower_precisions_are_right_to_their_rounding(dtype, tolerance, lengths, padding):
    qkv = fused(sum(lengths), 4, 16, dtype)
    wide = qkv.detach().double().requires_grad_()
    how = {"segments": (64, 512), "ratios": (1, 4), "lengths": lengths, "padding": padding}
    how["log_size"] = torch.linspace(0, 3, len(qkv))
    ours = dilated_attention(*qkv.unbind(1), **how)
    truth = dilated_attention_reference(*wide.unbind(1), **how)
    assert ours.dtype == dtype
    weight = torch.ones_like(ours)
    d_ours, d_truth = (
        torch.autograd.grad(ours, qkv, weight)[0],
        torch.autograd.grad(truth, wide, weight.double())[0],
    )
    assert (ours - truth).norm() < tolerance * truth.norm()
    assert (d_ours - d_truth).norm() < 2 * tolerance * d_truth.norm()


def test_a_bf16_row_as_long_as_the_paper_s_is_right_to_its_rounding():
    q, k, v, grad = torch.randn(4, 1, 2, kernels.LONG_ROW, 48, generator=torch.Generator().manual_seed(0))
    wide = [x.bfloat16().double() for x in (q, k, v, grad)]
    out, lse = kernels.plain(*wide[:3], None)
    truth = kernels.plain_backward(wide[3], *wide[:3], out, lse, None)
    kernel = backend(CPU, torch.bfloat16)
    narrow = [x.bfloat16() for x in (q, k, v, grad, out)]
    found, found_lse = kernel.forward(*narrow[:3], None)
    grads = kernel.backward(narrow[3], *narrow[:3], narrow[4], lse.float(), None)
    assert (found - out).norm() < 0.01 * out.norm()
    torch.testing.assert_close(found_lse, lse.float(), rtol=0, atol=1e-3)
    assert all((a - b).norm() < 0.02 * b.norm() for a, b in zip(grads, truth, strict=True))


def test_a_packed_slide_is_as_good_as_alone():
    lengths = (200, 1, 77, 64, 513)
    q, k, v = fused(sum(lengths), 5, 8).detach().unbind(1)
    log_size = torch.rand(len(q))
    together = dilated_attention(q, k, v, (32, 128), (1, 4), lengths=lengths, log_size=log_size)
    alone = [
        dilated_attention(*rows[:3], (32, 128), (1, 4), log_size=rows[3])
        for rows in zip(*(x.split(lengths) for x in (q, k, v, log_size)), strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-13)


def test_a_broken_slide_does_not_spoil_the_others_of_its_pack():
    qkv = fused(30, 2, 4).detach()
    qkv[:10] = torch.nan
    qkv.requires_grad_()
    out = dilated_attention(*qkv.unbind(1), (4, 16), (1, 2), lengths=(10, 13, 7))
    grad = torch.autograd.grad(out, qkv, torch.ones_like(out))[0]
    assert out[10:].isfinite().all() and grad[10:].isfinite().all()


def count_calls(monkeypatch, lengths) -> int:
    calls = []

    def counted(device, dtype):
        kernel = backend(device, dtype)
        return replace(kernel, forward=lambda *x: calls.append(x[0].shape) or kernel.forward(*x))

    monkeypatch.setattr(module, "backend", counted)
    q, k, v = fused(sum(lengths), 2, 4).detach().unbind(1)
    dilated_attention(q, k, v, (64, 512), (1, 2), lengths=lengths)
    return len(calls)


def test_kernel_calls_do_not_grow_with_the_number_of_slides(monkeypatch):
    sizes = [130 + 37 * i % 1900 for i in range(64)]
    few = count_calls(monkeypatch, tuple(sizes[:8]))
    many = count_calls(monkeypatch, tuple(sizes))
    assert many <= 2 * 9 and many <= few + 8
    assert count_calls(monkeypatch, tuple(sizes) * 4) <= 2 * 9


def test_a_long_slide_is_read_in_calls_of_bounded_size(monkeypatch):
    """What a call makes is small beside the slide; how it is cut changes nothing."""
    qkv = fused(300, 4, 4)
    options = {"segments": (8, 16, 64), "ratios": (1, 2, 4)}
    whole = dilated_attention(*qkv.unbind(1), **options)
    grad = torch.autograd.grad(whole.square().sum(), qkv)[0]
    monkeypatch.setattr(attention_rows, "CALL_ROWS", {"cpu": 64, "cuda": 64})
    plan_rows.cache_clear()
    try:
        cut = dilated_attention(*qkv.unbind(1), **options)
        plan = plan_rows((300,), *options.values(), 4, 4, CPU)
        assert max(r.segments * r.groups * r.tokens * r.heads for r in plan) == 64
        assert torch.equal(cut, whole)
        torch.testing.assert_close(
            torch.autograd.grad(cut.square().sum(), qkv)[0], grad, rtol=1e-12, atol=1e-12
        )
    finally:
        plan_rows.cache_clear()


def test_full_rows_of_a_pack_need_no_mask_and_rows_are_hardly_filled_up():
    lengths = tuple(1000 + 61 * i for i in range(16))
    plan = plan_rows(lengths, (64, 512), (1, 2), 2, 6, CPU)
    full = [rows for rows in plan if rows.mask is None]
    assert {rows.tokens.shape[1] for rows in full} == {64, 256}
    computed = sum(rows.tokens.shape[0] * rows.tokens.shape[1] ** 2 * rows.heads for rows in plan)
    needed = sum(attended_pairs(length, (64, 512), (1, 2), 2) for length in lengths)
    assert needed <= computed < 1.15 * needed


def test_one_slide_is_read_in_place_where_the_ratio_is_1():
    q = fused(5000, 4, 8).detach()[:, 1]
    plan = plan_rows((5000,), (1024, 2048), (1, 2), 4, 4, CPU)
    taken = [rows.take(q) for rows in plan if rows.ratio == 1]
    assert [x.untyped_storage().data_ptr() for x in taken] == [q.untyped_storage().data_ptr()] * 2
    assert sum(x.shape[0] * x.shape[2] for x in taken) == 5000


@pytest.mark.parametrize("lengths", [(40,), (25, 15)])
def test_any_strides_do(lengths):
    base = fused(40, 4, 6).detach()
    expected = dilated_attention(*(x.contiguous() for x in base.unbind(1)), (8, 16), (1, 2), lengths=lengths)
    layouts = [
        base.unbind(1),
        [x.permute(2, 1, 0).contiguous().permute(2, 1, 0) for x in base.unbind(1)],
        [torch.cat((x, x), 2)[..., :6] for x in base.unbind(1)],
        [base[:, 0].contiguous(), *base[:, 1:].unbind(1)],
    ]
    for q, k, v in layouts:
        torch.testing.assert_close(
            dilated_attention(q, k, v, (8, 16), (1, 2), lengths=lengths), expected, rtol=0, atol=1e-14
        )
    heads_alike = base[:, 0, :1].expand(-1, 4, -1)
    torch.testing.assert_close(
        dilated_attention(*[heads_alike] * 3, (8, 16), (1, 2), lengths=lengths),
        dilated_attention(*[heads_alike.contiguous()] * 3, (8, 16), (1, 2), lengths=lengths),
        rtol=0,
        atol=1e-14,
    )


@pytest.mark.parametrize("lengths", [(100,), (60, 40)])
@pytest.mark.parametrize("gradient", MODES)
def test_training_keeps_one_output_and_one_log_sum_exp_beside_its_inputs(lengths, gradient):
    qkv = fused(100, 4, 8)
    kept = {}

    def note(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        out = dilated_attention(*qkv.unbind(1), (8, 16, 64), (1, 2, 4), lengths=lengths, gradient=gradient)
    spare = len(lengths) > 1
    beside = (100 + spare) * 4 * (8 + 1) * 8
    assert sum(kept.values()) - qkv.untyped_storage().nbytes() == beside
    assert out.shape == (100, 4, 8)


@pytest.mark.parametrize("lengths", [(100,), (60, 40)])
def test_recomputed_in_the_backward_pass_it_is_the_same(lengths):
    qkv = fused(100, 4, 8)

    def run(x):
        return dilated_attention(*x.unbind(1), (8, 64), (1, 4), lengths=lengths).square()

    kept = torch.autograd.grad(run(qkv).sum(), qkv)[0]
    again = torch.autograd.grad(checkpoint(run, qkv, use_reentrant=False).sum(), qkv)[0]
    assert torch.equal(kept, again)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("lengths", [(50,), (30, 20)])
def test_only_the_gradients_asked_for_come_back(wanted, lengths):
    qkv = [x.detach().clone() for x in fused(50, 4, 8).unbind(1)]
    for i in wanted:
        qkv[i].requires_grad_()
    leaves = [qkv[i] for i in wanted]
    ours, truth = (
        f(*qkv, (8, 32), (1, 4), lengths=lengths) for f in (dilated_attention, dilated_attention_reference)
    )
    for a, b in zip(
        torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(truth.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lengths", [(50,), (30, 20)])
def test_inference_mode_and_autocast_change_nothing(lengths):
    qkv = fused(50, 4, 8, torch.float32)
    expected = dilated_attention(*qkv.unbind(1), (8, 32), (1, 4), lengths=lengths)
    with torch.inference_mode():
        assert torch.equal(dilated_attention(*qkv.unbind(1), (8, 32), (1, 4), lengths=lengths), expected)
    with torch.autocast("cpu", torch.bfloat16):
        found = dilated_attention(*qkv.unbind(1), (8, 32), (1, 4), lengths=lengths)
        grad = torch.autograd.grad(found.sum(), qkv)[0]
    assert torch.equal(found, expected)
    assert torch.equal(grad, torch.autograd.grad(expected.sum(), qkv)[0])


def test_the_plain_kernel_keeps_its_precision_under_autocast():
    q, k, v = fused(32, 2, 8, torch.float32).detach().permute(1, 2, 0, 3).unsqueeze(1)
    expected = kernels.plain(q, k, v, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = kernels.plain(q, k, v, None)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("segments", "ratios", "says"),
    [
        ((10,), (4,), "segment 10 with ratio 4"),
        ((0,), (1,), "segment 0"),
        ((8,), (0,), "ratio 0"),
        ((8, 16), (1,), "2 segments and 1 ratios"),
        ((), (), "0 segments"),
    ],
)
def test_branches_that_torchscale_would_shift_are_an_error(segments, ratios, says):
    with pytest.raises(UsageError, match=says):
        check_branches(segments, ratios)


def test_tensors_and_lengths_that_do_not_fit_are_an_error():
    q, k, v = fused(10, 2, 4).detach().unbind(1)
    with pytest.raises(UsageError, match="one shape and dtype"):
        dilated_attention(q, k.float(), v, (4,), (1,))
    with pytest.raises(UsageError, match="one shape and dtype"):
        dilated_attention(q[:9], k, v, (4,), (1,))
    with pytest.raises(UsageError, match="the 10 tokens"):
        dilated_attention(q, k, v, (4,), (1,), lengths=(4, 5))
    with pytest.raises(UsageError, match="positive"):
        dilated_attention(q, k, v, (4,), (1,), lengths=(10, 0))
    with pytest.raises(UsageError, match="'zeros'"):
        dilated_attention(q, k, v, (4,), (1,), padding="zeros")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), branches, st.integers(1, 9))
def test_attended_pairs_are_those_of_the_mask(length, found, heads):
    segments, ratios = found
    seen = sum(int(visible(length, s, r, heads).sum()) for s, r in zip(segments, ratios, strict=True))
    assert attended_pairs(length, segments, ratios, heads) == seen
    padded = 0
    for segment, ratio in zip(segments, ratios, strict=True):
        rows = len(range(0, min(segment, length), ratio))
        padded += len(range(0, length, min(segment, length))) * heads * rows**2
    assert attended_pairs(length, segments, ratios, heads, padded=True) == padded >= seen


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), branches, st.integers(1, 9))
def test_reach_is_the_power_of_the_mask(length, found, heads):
    segments, ratios = found
    sees = torch.eye(length, dtype=torch.bool)
    for segment, ratio in zip(segments, ratios, strict=True):
        sees |= visible(length, segment, ratio, heads).any(0)
    row, shares = sees[0].float(), []
    for _ in range(4):
        shares.append((int((row > 0).sum()) - 1) / (length - 1))
        row = (row @ sees.float() > 0).float()
    assert reach(length, segments, ratios, heads, 4) == tuple(shares)


def reach(length, segments, ratios, heads, layers):
    """Shares of the other rows that can have reached row 0 after 1, 2, ... layers."""
    rows, shares = torch.arange(length) == 0, []
    for _ in range(layers):
        rows = attended(rows, segments, ratios, heads)
        shares.append((int(rows.sum()) - 1) / (length - 1))
    return tuple(shares)


def test_the_last_799_of_the_paper_s_17182_patches_never_reach_cls():
    shares = reach(17_183, SEGMENTS, RATIOS, 16, 6)
    assert [round(share, 3) for share in shares] == [0.179] + [0.953] * 5
    assert round(shares[-1] * 17_182) == 17_182 - 799
    gigapath = (1024, 5792, 32768, 185363, 1048576)
    assert [round(share, 3) for share in reach(54_024, gigapath, RATIOS, 16, 2)] == [0.237, 1.0]


def rows_of_a_kernel(device, dtype, seed=0):
    """grad, q, k, v [3, 2, 37, 20], a bias with sizes and hidden keys."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, 2, 37, 20, generator=draw).to(device, dtype)
    bias = torch.rand(3, 1, 1, 37, generator=draw) * 4
    bias[1, ..., 30:] = -torch.inf
    return *x, bias.to(device)


@pytest.mark.parametrize("biased", [True, False])
def test_the_cpu_kernel_and_the_plain_one_agree(biased):
    grad, q, k, v, bias = rows_of_a_kernel(CPU, torch.float64)
    bias = bias if biased else None
    found, expected = kernels.cpu_flash(q, k, v, bias), kernels.plain(q, k, v, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    out, lse = expected
    torch.testing.assert_close(
        kernels.cpu_flash_backward(grad, q, k, v, out, lse, bias),
        kernels.plain_backward(grad, q, k, v, out, lse, bias),
        rtol=0,
        atol=1e-13,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_two_extra_channels_are_as_good_as_a_bias(dtype, tolerance):
    _, q, k, v, bias = rows_of_a_kernel(CPU, dtype)
    wide = kernels.widened(q, k, v, bias)
    assert {x.shape[-1] for x in wide} == {24}
    q_, k_, v_ = (x.double() for x in wide)
    logits = q_ @ k_.mT * q.shape[-1] ** -0.5
    plain_logits = q.double() @ k.double().mT * q.shape[-1] ** -0.5 + bias
    hidden = (bias == -torch.inf).expand_as(logits)
    torch.testing.assert_close(logits[~hidden], plain_logits[~hidden], rtol=0, atol=1e-4)
    assert (logits[hidden] < -6000).all()
    expected = plain_logits.softmax(-1) @ v.double()
    torch.testing.assert_close((logits.softmax(-1) @ v_)[..., :20], expected, rtol=0, atol=tolerance)


def test_heads_of_48_need_no_extra_channels():
    q = torch.randn(2, 3, 5, 48)
    assert all(x is q for x in kernels.widened(q, q, q, None))


@pytest.mark.parametrize("name", ["cuda_flash", "cuda_efficient"])
@pytest.mark.parametrize("biased", [True, False])
def test_cuda_kernels_fit_their_operators_signatures(name, biased):
    grad, q, k, v, bias = rows_of_a_kernel("meta", torch.float16)
    bias = bias if biased else None
    out, lse = getattr(kernels, name)(q, k, v, bias)
    assert out.shape == q.shape and lse.shape == q.shape[:3] and lse.dtype == torch.float32
    grads = getattr(kernels, f"{name}_backward")(grad, q, k, v, out, lse, bias)
    assert [x.shape for x in grads] == [q.shape] * 3


def test_the_table_says_which_kernel_and_why(monkeypatch):
    assert backend(CPU, torch.float32).name == "cpu-flash"
    backend.cache_clear()
    monkeypatch.setattr(kernels, "_has_bf16_products", lambda: False)
    assert "fp32" in backend(CPU, torch.bfloat16).reason
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    for capability, dtype, name in [
        ((8, 0), torch.bfloat16, "cuda-flash"),
        ((9, 0), torch.float16, "cuda-flash"),
        ((9, 0), torch.float32, "cuda-efficient"),
        ((7, 5), torch.float16, "cuda-efficient"),
        ((7, 5), torch.bfloat16, "plain"),
        ((9, 0), torch.float64, "plain"),
    ]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        backend.cache_clear()
        assert backend(torch.device("cuda"), dtype).name == name
    assert backend(torch.device("mps"), torch.float32).name == "plain"
    backend.cache_clear()


def test_half_precision_without_products_for_it_runs_in_fp32(monkeypatch):
    grad, q, k, v, bias = rows_of_a_kernel(CPU, torch.bfloat16)
    backend.cache_clear()
    monkeypatch.setattr(kernels, "_has_bf16_products", lambda: False)
    kernel = backend(CPU, torch.bfloat16)
    backend.cache_clear()
    wide = kernels.cpu_flash(q.float(), k.float(), v.float(), bias)
    out, lse = kernel.forward(q, k, v, bias)
    assert torch.equal(out, wide[0].bfloat16()) and torch.equal(lse, wide[1])
    grads = kernel.backward(grad, q, k, v, out, lse, bias)
    truth = kernels.plain_backward(*(x.double() for x in (grad, q, k, v, out, lse)), bias)
    assert all((a - b).norm() < 0.005 * b.norm() for a, b in zip(grads, truth, strict=True))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@needs_gpu
@pytest.mark.parametrize("name", ["cuda_flash", "cuda_efficient"])
@pytest.mark.parametrize("biased", [True, False])
def test_cuda_kernels_agree_with_the_plain_one(name, biased):
    grad, q, k, v, bias = rows_of_a_kernel("cuda", torch.float16)
    bias = bias if biased else None
    wide = [x.double() for x in (q, k, v)]
    out, lse = kernels.plain(*wide, bias)
    found, found_lse = getattr(kernels, name)(q, k, v, bias)
    torch.testing.assert_close(found.double(), out, rtol=0, atol=5e-3)
    torch.testing.assert_close(found_lse.double(), lse, rtol=0, atol=5e-3)
    lse[0, 0, 0] = torch.inf
    grads = getattr(kernels, f"{name}_backward")(grad, q, k, v, found, lse.float(), bias)
    truth = kernels.plain_backward(grad.double(), *wide, out, lse, bias)
    assert all((a - b).norm() < 0.01 * b.norm() for a, b in zip(grads, truth, strict=True))


@needs_gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 2e-3), (torch.bfloat16, 0.02), (torch.float16, 5e-3)],
)
@pytest.mark.parametrize("lengths", [(1700,), (300, 170, 513)])
@pytest.mark.parametrize("padding", MODES)
def test_on_cuda_it_is_the_dense_reference_too(dtype, tolerance, lengths, padding):
    qkv = fused(sum(lengths), 4, 24, dtype).detach().cuda().requires_grad_()
    wide = qkv.detach().double().requires_grad_()
    how = {"segments": (64, 1024), "ratios": (1, 4), "lengths": lengths, "padding": padding}
    how["log_size"] = torch.linspace(0, 3, len(qkv), device="cuda")
    ours = dilated_attention(*qkv.unbind(1), **how)
    truth = dilated_attention_reference(*wide.unbind(1), **how)
    d_ours, d_truth = (torch.autograd.grad(x.sum(), y)[0] for x, y in ((ours, qkv), (truth, wide)))
    assert (ours - truth).norm() < tolerance * truth.norm()
    assert (d_ours - d_truth).norm() < 2 * tolerance * d_truth.norm()
