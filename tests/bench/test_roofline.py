"""The model of time by hand, and what it says of the committed counts."""

import dataclasses

import pytest
import torch

from setok_bench import roofline
from setok_bench.growth import _TERMS, fitted
from setok_bench.kernel_counts import GROWING, KernelCount
from setok_bench.machine import ASSUMED, H100, H200
from setok_bench.passes import PASSES
from setok_bench.work import Shape

# Of one image: 264 programs of 4 warps, of which 8 fit on a multiprocessor.
COUNT = KernelCount(
    launches=1,
    programs=264,
    num_warps=4,
    fit=8,
    issue=2_640_000,
    shared_bytes=1000,
    read_bytes=64_000,
    written_bytes=32_000,
    reached_bytes=90_000,
    chain_l2=5000,
    chain_memory=20_000,
)


def predict(images=1, **changes):
    count = dataclasses.asdict(dataclasses.replace(COUNT, **changes))
    return roofline.predict("some", count, images, H200)


def test_instructions_set_the_pace():
    # Two programs of 10 000 warp instructions on each multiprocessor, four a clock.
    found = predict()
    assert found.parts["issue"] == pytest.approx(5000 / 1.755e9)
    assert found.floor == pytest.approx(5000 / 1.755e9)
    assert found.bound in ("issue", "waiting")
    assert found.expected == pytest.approx(5000 / 1.755e9 + 1e-6)
    assert predict(images=2).parts["issue"] == pytest.approx(2 * found.parts["issue"])


def test_programs_that_do_not_divide_leave_the_device_idle():
    """133 programs take as long as 264, and their floor does not know it."""
    found = predict(programs=133, issue=1_330_000)
    assert found.parts["issue"] == pytest.approx(5000 / 1.755e9)
    assert found.floor == pytest.approx(5000 / 1.755e9 * 133 / 264)


def test_one_warp_has_one_scheduler():
    found = predict(programs=132, issue=1_320_000, num_warps=1)
    assert found.parts["issue"] == pytest.approx(10_000 / 1.755e9)


@pytest.mark.parametrize(
    ("field", "value", "bound", "clocks"),
    [
        ("shuffle", 2_640_000, "shuffle", 20_000),
        ("special", 2_640_000, "special", 40_000),
        ("fp64", 2_640_000, "fp64", 10_000),
        ("shared_bytes", 264 * 1_280_000, "shared/L1", 20_000),
    ],
)
def test_each_resource_can_bound(field, value, bound, clocks):
    found = predict(**{field: value})
    assert found.bound == bound
    assert found.parts[bound] == pytest.approx(clocks / 1.755e9)


def test_memory_is_no_more_than_the_tensors_and_no_more_than_the_sectors():
    assert predict(reached_bytes=43e6, read_bytes=1e9).parts["memory"] == pytest.approx(1e-5)
    assert predict(reached_bytes=1e9, read_bytes=43e6, written_bytes=0).parts[
        "memory"
    ] == pytest.approx(1e-5)


def test_the_rate_of_l2_is_assumed_and_has_two_ends():
    found = predict(read_bytes=55e6, written_bytes=0, reached_bytes=1)
    assert found.bound == "L2" and found.parts["L2"] == pytest.approx(1e-5)
    assert found.floor == pytest.approx(55e6 / 10e12)
    assert {"l2", "l2_best"} <= set(ASSUMED)


def test_a_program_that_waits():
    """One program an image: what the others do does not help it."""
    found = predict(programs=1, issue=1000, chain_l2=175_500)
    assert found.bound == "waiting" and found.expected == pytest.approx(1e-4 + 1e-6)
    many = predict(images=132 * 8, programs=1, issue=1000, chain_l2=175_500, reached_bytes=1)
    assert many.parts["waiting"] == pytest.approx(1e-4)
    more = predict(images=132 * 8 + 1, programs=1, issue=1000, chain_l2=175_500, reached_bytes=1)
    assert more.parts["waiting"] == pytest.approx(2e-4)


def test_rows_beyond_the_cache_come_from_memory():
    near, far = (predict(images=n, programs=1, reached_bytes=2e6) for n in (25, 26))
    assert far.parts["waiting"] == pytest.approx(4 * near.parts["waiting"])


def test_launches_follow_one_another():
    found = predict(launches=3, programs=792, issue=7_920_000, chain_l2=15_000)
    assert found.gap == pytest.approx(3e-6)
    assert found.parts["issue"] == pytest.approx(3 * predict().parts["issue"])
    assert found.parts["waiting"] == pytest.approx(3 * predict().parts["waiting"])


def case(tokens, issue):
    count = dataclasses.asdict(dataclasses.replace(COUNT, issue=issue))
    shape = {"tokens": tokens, "features": 64, "k": 8, "clusters": 64, "dtype": "bfloat16"}
    return {"shape": shape, "how": "counted", "torch_kernels": 2, "kernels": {"some": count}}


def test_a_length_between_is_a_parabola():
    counts = {"cases": [case(n, 3 * n * n + n) for n in (100, 200, 400, 1000)]}
    found = roofline.find_case(Shape(1, 300, 64), counts)
    assert found["kernels"]["some"]["issue"] == pytest.approx(3 * 300 * 300 + 300)
    assert found["how"] == "a parabola through 100, 200, 400 tokens"
    assert roofline.find_case(Shape(1, 200, 64), counts)["how"] == "counted"


def test_the_longest_program_is_waited_for():
    """One round of programs, and the last of two rounds."""
    one = predict(longest_l2=175_500)
    assert one.bound == "waiting" and one.parts["waiting"] == pytest.approx(1e-4)
    # 132 multiprocessors hold 1056 programs at once.
    two = predict(images=5, longest_l2=175_500)
    assert two.parts["waiting"] == pytest.approx(1e-4 + 5000 / 1.755e9)
    assert predict(longest_l2=1).parts["waiting"] == pytest.approx(5000 / 1.755e9)


# Each program reads 16 KB four times, and others once.
KEPT = {"read_bytes": 264 * 80e3, "kept_bytes": 264 * 64e3, "first_bytes": 264 * 16e3}
KEPT |= {"written_bytes": 264 * 10e3, "reached_bytes": 1e9}


@pytest.mark.parametrize(
    ("images", "changes", "served"),
    [
        (1, {}, 48e3),
        # Eight programs at once: 16 KB each and up to 16.7 KB of shared memory.
        (4, {"shared": 16_700}, 48e3),
        (4, {"shared": 16_800}, 0),
        # Two of them at once.
        (1, {"shared": 16_800}, 48e3),
        (1, {"kept_bytes": 0, "first_bytes": 0}, 0),
        (1, {"first_bytes": 264 * 64e3}, 0),
    ],
)
def test_rows_that_stay_in_l1(images, changes, served):
    count = dataclasses.asdict(dataclasses.replace(COUNT, **(KEPT | changes)))
    assert roofline.l1_hits(count, images, H200) == pytest.approx(served / 80e3)
    assert roofline.l2_bytes(count, images, H200) == pytest.approx(264 * (90e3 - served))
    moved = images * 264 * (90e3 - served)
    assert predict(images, **(KEPT | changes)).parts["L2"] >= moved / 5.5e12


def test_loads_from_l1_wait_less():
    chains = {"chain_l1": 1000, "chain_l2": 5000, "longest_l1": 2000, "longest_l2": 10_000}
    chains |= {"chain_memory": 5000, "longest_memory": 10_000}
    clocks = 0.6 * 2000 + 0.4 * 10_000
    assert predict(**KEPT, **chains).parts["waiting"] == pytest.approx(clocks / 1.755e9)
    # The longest program alone reads more than fits.
    far = predict(**KEPT, **chains, longest_first_bytes=300e3)
    assert far.parts["waiting"] == pytest.approx(10_000 / 1.755e9)


def streamed(tokens, launched=False, **changes):
    """A case whose counts are quadratic, and whose launches grow with the logarithm."""
    launches = tokens.bit_length()
    numbers = dict.fromkeys(GROWING, 0) | {"launches": launches, "programs": launches * tokens}
    if not launched:
        numbers |= {"issue": launches * (5 * tokens**2 + tokens), "read_bytes": launches * 7}
        numbers |= {"chain_l2": launches * 3 * tokens}
    found = case(tokens, 0)
    found["kernels"]["some"] |= numbers | changes
    how = "launched, not run" if launched else "counted"
    return found | {"pass": "streaming", "how": how}


@pytest.mark.parametrize("launched", [True, False])
def test_the_streaming_pass_is_extrapolated(launched):
    counts = {"cases": [streamed(n) for n in (1024, 2048, 4096)]}
    if launched:
        counts["cases"].append(streamed(16384, launched=True, registers=77, fit=3))
    shape = Shape(1, 16384, 64)
    found = roofline.find_case(shape, counts, "streaming")
    assert found["how"] == "extrapolated from 1024, 2048, 4096 tokens"
    some = found["kernels"]["some"]
    # The number of launches is known exactly only where they were launched.
    close = {"rel": 1e-3 if launched else 0.03}
    assert some["launches"] == pytest.approx(15, **close)
    assert some["programs"] == pytest.approx(15 * 16384, **close)
    assert some["issue"] == pytest.approx(15 * (5 * 16384**2 + 16384), **close)
    assert some["read_bytes"] == pytest.approx(15 * 7, **close)
    assert some["chain_l2"] == pytest.approx(15 * 3 * 16384, **close)
    assert (some["registers"], some["fit"]) == ((77, 3) if launched else (0, 8))
    waiting = {p.kernel: p for p in roofline.streaming(shape, H200, counts)}["some"]
    assert waiting.expected > 14 * 3 * 16384 / 1.755e9
    for name in ("forward", "backward"):
        with pytest.raises(ValueError, match="expected one up to the counted ones of the pass"):
            roofline.find_case(shape, counts, name)


def test_other_kernels_at_the_size_are_not_guessed():
    other = streamed(16384, launched=True)
    other["kernels"]["another"] = other["kernels"].pop("some")
    counts = {"cases": [*(streamed(n) for n in (1024, 2048, 4096)), other]}
    with pytest.raises(ValueError, match=r"expected another, launched at 16384 tokens, .* \[\]"):
        roofline.find_case(Shape(1, 16384, 64), counts, "streaming")


def test_other_kernels_of_fewer_tokens_are_left_out():
    small = streamed(1024)
    small["kernels"]["another"] = small["kernels"].pop("some")
    counts = {"cases": [small, streamed(2048), streamed(4096)]}
    shape = Shape(1, 16384, 64)
    assert list(roofline.find_case(shape, counts, "streaming")["kernels"]) == ["some"]
    with pytest.raises(ValueError, match="expected the same kernels at 1024, 2048, 4096 tokens"):
        roofline.find_case(Shape(1, 3000, 64), counts, "streaming")


def test_noise_of_a_linear_count_stays_small():
    sizes = [1024, 2048, 4096]
    for noise in ([1.01, 0.99, 1.01], [0.99, 1.01, 0.99], [1.01, 1, 0.99]):
        values = [3 * n * e for n, e in zip(sizes, noise, strict=True)]
        found = fitted(sizes, values, 16384, _TERMS)
        assert found == pytest.approx(3 * 16384, rel=0.1)


def test_forward_and_backward_over_forward():
    ahead = case(200, 2_640_000)
    counts = {"cases": [ahead, ahead | {"pass": "backward", "torch_kernels": 0}]}
    shape = Shape(8, 200, 64)
    forward, backward = (
        roofline.total(f(shape, H200, counts)) for f in (roofline.forward, roofline.backward)
    )
    assert forward == pytest.approx(backward + 4e-6)
    ratio = roofline.training_over_forward(shape, H200, counts)
    assert ratio == pytest.approx(1 + backward / forward)


@pytest.mark.parametrize("shape", [Shape(1, 1001, 64), Shape(1, 300, 65), Shape(1, 300, 64, k=9)])
def test_what_was_not_counted_is_refused(shape):
    counts = {"cases": [case(n, n) for n in (100, 200, 400, 1000)]}
    with pytest.raises(ValueError, match=r"^shape: expected one up to the counted ones .*got 1x"):
        roofline.find_case(shape, counts)


def test_torch_adds_launches():
    found = roofline.forward(Shape(8, 200, 64), H200, {"cases": [case(200, 1000)]})
    assert [p.kernel for p in found] == ["some", "torch"]
    assert found[1].expected == pytest.approx(4e-6)
    assert roofline.total(found) == pytest.approx(sum(p.expected for p in found))


def test_the_product_it_is_compared_with():
    # 64 x 36 tiles of 128 x 128 on 132 multiprocessors: 18 on the busiest.
    flops = 18 * 2 * 128 * 128 * 1152 * 132
    found = roofline.product_seconds(Shape(64, 729, 1152), H200)
    assert found == pytest.approx(flops / 790e12 + 1e-6)
    plain = roofline.product_seconds(Shape(64, 729, 1152, dtype=torch.float32), H200)
    assert plain / found == pytest.approx(790e12 / (132 * 4 * 64 * 1.755e9), rel=0.01)


def test_a_machine_says_its_numbers_and_what_is_assumed():
    said = H100.described()
    assert "H100: 132 multiprocessors" in said and "(estimated)" in said
    assert "Assumed: L2 5.5 TB/s (10 at best)" in said


class TestCommitted:
    """Properties of the committed counts that no change of the kernels may lose."""

    counts = roofline.load_counts()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("text", roofline.SHAPES)
    def test_every_shape_of_the_report_is_predicted(self, text, dtype):
        shape = Shape.parse(text, dtype)
        found = roofline.forward(shape, H200, self.counts)
        assert all(0 <= p.floor <= p.expected for p in found), found
        assert 0 < roofline.product_seconds(shape, H200) < roofline.total(found)

    @pytest.mark.parametrize("name", PASSES)
    def test_every_pass_is_predicted(self, name):
        for text in roofline.PASS_SHAPES.get(name, ("1x729x1152", "64x729x1152")):
            found = roofline.predictions(name, Shape.parse(text), H200, self.counts)
            assert len(found) > 1
            assert all(0 <= p.floor <= p.expected for p in found), found

    def test_more_images_take_no_less(self):
        times = [
            roofline.total(roofline.forward(Shape(b, 729, 1152), H200, self.counts))
            for b in (1, 2, 8, 64, 65)
        ]
        assert times == sorted(times)

    def test_they_are_of_a_clean_commit(self):
        assert self.counts["commit"] and not self.counts["uncommitted_changes"]
