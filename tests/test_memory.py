"""Memory of large results, which is kept from call to call."""

import os
import threading

import pytest
import torch

import rnnfused
from rnnfused._load import _C

MIB = 2**20
HEADER = 64  # bytes before every block


@pytest.fixture(autouse=True)
def _nothing_kept():
    rnnfused.empty_cache()
    yield
    rnnfused.empty_cache()


def layer_and_input(steps=128, batch=64, size=64):
    """A layer whose results are large, and its scratch is not."""
    torch.manual_seed(1)
    return rnnfused.LSTM(size, size), torch.randn(steps, batch, size)


def test_a_freed_result_is_the_next_calls():
    layer, x = layer_and_input()
    with torch.no_grad():
        where = layer(x)[0].data_ptr()
        assert _C.kept_bytes() == x.nbytes + HEADER
        assert layer(x)[0].data_ptr() == where


def test_training_steps_take_no_new_memory():
    layer, x = layer_and_input()

    def step():
        layer(x)[0].sum().backward()
        layer.zero_grad()

    step()
    kept = _C.kept_bytes()
    assert kept > 5 * x.nbytes  # y, the gates, c
    for _ in range(3):
        step()
        assert _C.kept_bytes() == kept


def test_results_in_use_are_nobody_elses():
    layer, x = layer_and_input()
    with torch.no_grad():
        first, want = layer(x)[0], layer(x)[0].clone()
        others = [layer(2 * x)[0] for _ in range(3)]
    torch.testing.assert_close(first, want, rtol=0, atol=0)
    assert len({y.data_ptr() for y in [first, *others]}) == 4


def test_retained_graph_keeps_its_tape():
    layer, x = layer_and_input()
    x.requires_grad_()
    y, _ = layer(x)
    (once,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    for _ in range(2):
        layer(x)[0].sum().backward()
    (again,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(again, once, rtol=0, atol=0)


def test_a_large_block_serves_smaller_results_and_is_whole_again():
    layer, x = layer_and_input(steps=320)
    with torch.no_grad():
        where = layer(x)[0].data_ptr()
        kept = _C.kept_bytes()
        parts = [layer(x[:64])[0] for _ in range(3)]
        want = [part.clone() for part in parts]
        assert where <= min(part.data_ptr() for part in parts)
        assert max(part.data_ptr() for part in parts) < where + x.nbytes
        assert _C.kept_bytes() == kept - 3 * (x[:64].nbytes + HEADER)
        for part, values in zip(parts, want, strict=True):
            assert torch.equal(part, values)
        for i in (1, 0, 2):  # freed between free neighbours and beside used ones
            parts[i] = part = None
        assert _C.kept_bytes() == kept
        assert layer(x)[0].data_ptr() == where


def test_what_is_kept_but_too_small_goes_before_more_is_taken():
    layer, x = layer_and_input(steps=256)
    with torch.no_grad():
        layer(x[:128])
        y, _ = layer(x)
    assert y.isfinite().all()
    assert _C.kept_bytes() == 0


def test_small_results_are_not_kept():
    layer, x = layer_and_input(steps=4, batch=2)
    layer(x)[0].sum().backward()
    assert _C.kept_bytes() == 0


def test_no_more_is_kept_than_the_limit():
    layer, x = layer_and_input(steps=512, batch=32)
    with torch.no_grad():
        held = [layer(x)[0] for _ in range(80)]
        held.clear()
    assert 255 * MIB - x.nbytes < _C.kept_bytes() <= 256 * MIB


def resident() -> int:
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        return 0  # AddressSanitizer keeps what is freed for a while
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_small_results_in_use_do_not_hold_large_memory():
    layer = rnnfused.RNN(1, 64)

    def result(mib: int) -> torch.Tensor:
        with torch.no_grad():
            return layer(torch.zeros(mib * MIB // 256, 1, 1))[0]

    before = resident()
    # Each region is cut: the second result keeps it while the rest of it is freed.
    held, large = [], []
    for _ in range(5):
        result(200)
        held.append(result(12))
        large.append(result(187))
    large.clear()
    in_use = sum(t.nbytes for t in held)
    assert _C.kept_bytes() <= 256 * MIB
    assert resident() - before < 256 * MIB + in_use + 64 * MIB
    rnnfused.empty_cache()
    assert _C.kept_bytes() == 0
    assert resident() - before < in_use + 64 * MIB
    for y in held:
        torch.testing.assert_close(y, held[0], rtol=0, atol=0)
    # What was given back is memory again, whole regions too.
    large = [result(187) for _ in range(3)]
    held.clear()
    torch.testing.assert_close(large[0], large[2], rtol=0, atol=0)
    large.clear()
    assert _C.kept_bytes() <= 256 * MIB
    rnnfused.empty_cache()
    assert _C.kept_bytes() == 0


def test_empty_cache():
    layer, x = layer_and_input()
    with torch.no_grad():
        y, _ = layer(x)
        layer(x)
        assert "4 MiB" not in rnnfused.show_config()
        assert "2 MiB of freed memory kept" in rnnfused.show_config()
        rnnfused.empty_cache()
        assert _C.kept_bytes() == 0
        want = layer(x)[0]
    torch.testing.assert_close(y, want, rtol=0, atol=0)


def test_memory_outlives_the_thread_that_took_it():
    layer, x = layer_and_input()
    found = []

    def call():
        with torch.no_grad():
            found.append(layer(x)[0])

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    with torch.no_grad():
        torch.testing.assert_close(found[0], layer(x)[0], rtol=0, atol=0)
    found.clear()
    assert _C.kept_bytes() == 2 * (x.nbytes + HEADER)


def test_threads_at_once():
    layer, x = layer_and_input(steps=32)
    with torch.no_grad():
        want = layer(x)[0].clone()
    wrong = []

    def call():
        for _ in range(30):
            with torch.no_grad():
                if not torch.equal(layer(x)[0], want):
                    wrong.append(1)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_forked_child_has_the_memory_too():
    layer, x = layer_and_input()
    with torch.no_grad():
        y, _ = layer(x)
        layer(x)
        child = os.fork()
        if child == 0:
            os._exit(0 if layer(x)[0].numpy().tobytes() == y.numpy().tobytes() else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_kept_result_can_be_resized_and_shared():
    layer, x = layer_and_input()
    with torch.no_grad():
        y, _ = layer(x)
        want = y.clone()
        y.resize_(129, 64, 64)
        assert torch.equal(y[:128], want)
        y.share_memory_()
        assert torch.equal(y[:128], want)


def test_large_scratch_serves_gradients():
    layer, x = layer_and_input(steps=2, size=1024)
    y, _ = layer(x)
    scratch = _C.kept_bytes()
    assert scratch > layer.weight_hh_l0.nbytes
    y.sum().backward()
    assert _C.kept_bytes() < scratch + layer.weight_hh_l0.nbytes


def test_gradients_of_few_rows_are_not_summed_wider_than_they_are():
    _, x = layer_and_input(steps=64, batch=1, size=1024)
    taken = {}
    for dtype in (torch.float32, torch.bfloat16):
        rnnfused.empty_cache()
        layer = rnnfused.LSTM(1024, 1024, dtype=dtype)
        layer(x.to(dtype))[0].sum().backward()
        taken[dtype] = _C.kept_bytes() + sum(p.grad.nbytes for p in layer.parameters() if p.dim() == 2)
        del layer
    assert taken[torch.bfloat16] < 0.8 * taken[torch.float32]
