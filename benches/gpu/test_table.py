"""Counting, weights, and the table."""

import contextlib
import io
import sys
import tempfile
import unittest
from pathlib import Path

import checkpoint
import kernel_times
import make_weights
import table

TRANSFORMER = checkpoint.configurations("dev")["transformer"]


def timing(part: str, sizes: list, seconds: float | None, steps: int | None = None) -> dict:
    measured = (
        {"outcome": "measured", "median_seconds": seconds} if seconds else {"outcome": "does_not_fit", "reason": "-"}
    )
    return {"part": part, "pictures": sizes, "steps": steps} | measured


def document(**parts: dict) -> str:
    """The table of a run that has found this out."""
    return table.document(parts)


class Counting(unittest.TestCase):
    def test_a_step_has_the_published_number_of_operations(self) -> None:
        for side, expected in [(512, 21.5), (768, 41.9), (1024, 74.4), (2048, 418.0)]:
            teraflops = table.step_flops(TRANSFORMER, [[side, side]], 512) / 1e12
            self.assertAlmostEqual(teraflops, expected, delta=0.06 if side < 2048 else 0.5)

    def test_batched_images_do_not_attend_to_each_other(self) -> None:
        sizes = [[512, 512], [1024, 768]]
        one_by_one = sum(table.step_flops(TRANSFORMER, [size], 512) for size in sizes)
        self.assertEqual(table.step_flops(TRANSFORMER, sizes, 512), one_by_one)

    def test_the_weights_are_as_many_as_the_published_ones(self) -> None:
        counts = {
            name: sum(tensor.elements() for tensor in tensors) for name, tensors in checkpoint.tensors("dev").items()
        }
        expected = {
            "transformer": 11_901_408_320,
            "text_encoder": 123_060_480,
            "text_encoder_2": 4_762_310_656,
            "vae": 83_819_683,
        }
        self.assertEqual(counts, expected)

    def test_no_file_is_too_large_and_no_name_occurs_twice(self) -> None:
        for tensors in checkpoint.tensors("dev").values():
            names = [tensor.name for tensor in tensors]
            self.assertEqual(len(names), len(set(names)))
            shards = make_weights.shards_of(tensors)
            self.assertEqual([tensor for shard in shards for tensor in shard], tensors)
            for shard in shards:
                self.assertLessEqual(2 * sum(tensor.elements() for tensor in shard), make_weights.SHARD_BYTES_MAX)


class Table(unittest.TestCase):
    def test_ratios_floor_and_share(self) -> None:
        square = [1024, 1024]
        text = document(
            about={"commit": "abc 2030-01-01", "gpu": "A GPU, 1, 2 MiB", "transformer": TRANSFORMER},
            time={
                "device": "cuda:0",
                "text_tokens": 512,
                "load_seconds": 5.0,
                "timings": [
                    timing("step", [square], 0.2),
                    timing("picture", [square], 5.0, 28),
                    timing("step", [square] * 8, None),
                    timing("step", [[512, 512], square], 0.22),
                ],
            },
            compare={
                "dtype": "bfloat16",
                "load_seconds": 10.0,
                "timings": [timing("step", [square], 0.25), timing("step", [[512, 512]], 0.05)],
                "compiled": [timing("step", [square], 0.1)],
                "cudnn": [timing("step", [square], 0.16)],
            },
            torch_kernels={
                "kernels": [
                    {"kernel": "product, cuBLAS", "kind": "product", "shape": [1, 1, 1], "tflops": 744.0},
                    {"kernel": "product, cuBLAS", "kind": "product", "shape": [1, 1, 1], "tflops": 500.0},
                    {"kernel": "attention, cuDNN", "kind": "attention", "shape": [1, 1, 1, 1], "tflops": 900.0},
                ]
            },
            time_large={"timings": [timing("step", [[2048, 2048]], 0.6)]},
            stages={
                "stages": [
                    {
                        "stage": "time",
                        "outcome": "stopped after 9 s",
                        "seconds": 9.0,
                        "peak_mebibytes": 36000,
                        "peak_on": "GPU",
                        "busy_sm_clock_mhz": 1700,
                    }
                ]
            },
        )
        self.assertTrue(text.startswith("## abc 2030-01-01 on A GPU, 1, 2 MiB\n"), text)
        for line in [
            "| step 1024×1024 | 200.0 | 250.0 | 0.80 | 160.0 | 1.25 | 100.0 | 2.00 | 99.9 | 50 % |",
            "| complete image 1024×1024, 28 steps | 5000.0 | – | – | – | – | – | – | 2798.6 | 56 % |",
            "| step 8 images 1024×1024 | does not fit | – | – | – | – | – | – | 799.6 | – |",
            "| step 512×512 + 1024×1024 | 220.0 | 300.0 | 0.73 | – | – | – | – | 128.8 | 59 % |",
            "| step 2048×2048 | 600.0 | – | – | – | – | – | – | 561.9 | 94 % |",
            "- time: stopped after 9 s, 9 s, 36,000 MiB on the GPU at most, SM clock 1700 MHz while busy",
        ]:
            self.assertIn(line + "\n", text)

    def test_fp8_is_shown_beside_full_precision(self) -> None:
        square = [1024, 1024]
        image = {"prompt": "a fox", "seed": 1, "velocity_first": 0.031, "latents_final": 0.0004, "psnr_db": 31.25}
        text = document(
            time={"timings": [timing("step", [square], 0.1)]},
            time_fp8={
                "timings": [
                    timing("text", [], 0.03),
                    timing("step", [square], 0.08),
                    timing("step", [square] * 4, 0.3),
                ]
            },
            fidelity={
                "width": 1024,
                "height": 1024,
                "steps": 28,
                "pictures": [image, image | {"seed": 2, "psnr_db": None, "latents_final": None}],
            },
        )
        for line in [
            "| ms (median) | full precision | fp8, lossy | ratio |",
            "| step 1024×1024 | 100.0 | 80.0 | 0.80 |",
            "| step 4 images 1024×1024 | – | 300.0 | – |",
            "| fp8 away from full precision, 1024×1024, 28 steps | first velocity | last latents | PSNR |",
            "| seed 1 | 3.10 % | 4.00e-04 | 31.2 dB |",
            "| seed 2 | 3.10 % | – | – |",
        ]:
            self.assertIn(line + "\n", text)

    def test_portable_kernels_and_the_parts_of_loading_are_shown(self) -> None:
        square = [1024, 1024]
        moved = {"bytes": 34e9, "seconds": 2.0, "gigabytes_per_second": 17.0}
        text = document(
            time={"timings": [timing("step", [square], 0.1), timing("decoder", [square], 0.02)]},
            time_portable={"timings": [timing("step", [square], 0.125), timing("decoder", [square], 0.03)]},
            load={
                "reading_before": None,
                "weights": moved,
                "reading_after": moved | {"gigabytes_per_second": 20.0},
                "share_of_reading": 0.85,
                "parts": [{"name": "device", "seconds": 0.5}, {"name": "weights", "seconds": 2.0}],
                "seconds": 2.5,
            },
        )
        for line in [
            "| ms (median) | all kernels | portable ones | ratio |",
            "| step 1024×1024 | 100.0 | 125.0 | 1.25 |",
            "| decoder 1024×1024 | 20.0 | 30.0 | 1.50 |",
            "loading 17.0 GB/s · reading again 20.0 GB/s: 85 % of reading alone",
            "until the first image 2.50 s: device 0.50 s, weights 2.00 s",
        ]:
            self.assertIn(line + "\n", text)

    def test_an_error_is_wrong_and_a_missing_value_is_not_right(self) -> None:
        def distances(from_diffusers: float, from_f32: float | None = None) -> dict:
            exact = {} if from_f32 is None else {"from_f32": {"relative_l2": from_f32, "max": 1.0}}
            return {"from_diffusers": {"relative_l2": from_diffusers, "max": 1.0}} | exact

        text = document(
            reference={"pictures": {"a": {"mean": 0.01}, "b": {"mean": 0.02}}},
            compare={
                "dtype": "bfloat16",
                "same_tokens": {"clip": True, "t5": False},
                "distances": {
                    "velocity_first": distances(0.025, 0.015),
                    "t5_embeds": distances(0.025),
                    "pixels": distances(float("nan")),
                },
            },
        )
        verdicts = {
            line.split("|")[1].strip(): line.split("|")[-2].strip() for line in text.splitlines() if "|" in line
        }
        self.assertEqual(verdicts["2 tiny images, worst mean error"], "right")
        self.assertEqual(verdicts["first step, velocity"], "right", "what counts is the distance from f32")
        self.assertEqual(verdicts["T5"], "**WRONG**")
        self.assertEqual(verdicts["decoder"], "**WRONG**", "not a number")
        self.assertEqual(verdicts["CLIP, pooled"], "not measured")
        self.assertEqual(verdicts["token ids"], "**WRONG**")
        text = document(reference={"pictures": {"a": {"mean": 0.01}, "b": {"error": "no device"}}})
        self.assertIn("**1 NOT GENERATED**", text)

    def test_a_run_without_results_still_has_a_table(self) -> None:
        self.assertIn("## unknown commit on no GPU", document())

    def test_a_wrong_operation_is_named_and_a_group_that_died_is_not_right(self) -> None:
        def operation(name: str, error: float | None, failure: str | None = None) -> dict:
            return {"operation": name, "error": error, "tolerance": 0.02, "milliseconds": 1.0, "failure": failure}

        right = operation("linear", 0.005)
        text = document(
            operations={
                "portable": {"outcome": "done", "operations": [right, operation("gelu", 0.01)], "skipped": []},
                "products": {
                    "outcome": "failed with exit code 3",
                    "operations": [right, operation("a", 0.03), operation("b", None, "no memory"), operation("c", None)],
                    "skipped": [],
                },
                "doubled-hopper": {"outcome": "failed with exit code -11", "operations": [right], "skipped": []},
                "fp8": {"outcome": "done", "operations": [], "skipped": ["the device has none"]},
                "autoencoder": {"outcome": "done", "operations": [], "skipped": []},
                "attention-hopper": {"outcome": "done", "operations": [right], "skipped": [], "stopped": ["no answer"]},
            }
        )
        for line in [
            "| portable | 2 of 2 | gelu, 50% | right |",
            "| products | 1 of 4 | linear, 25% | **WRONG** |",
            "| doubled-hopper | 1 of 1 | linear, 25% | **NOT COMPLETE** failed with exit code -11 |",
            "| fp8 | 0 of 0 | – | skipped: the device has none |",
            "| autoencoder | 0 of 0 | – | **NOT COMPLETE** done |",
            "| attention-hopper | 1 of 1 | linear, 25% | **WRONG** done |",
            "- attention-hopper: no answer",
            "- products: a: error 0.03, at most 0.02",
            "- products: b: no memory",
            "- products: c: error None, at most 0.02",
        ]:
            self.assertIn(line + "\n", text)

    def test_kernels_are_shown_beside_those_of_torch(self) -> None:
        text = document(
            kernels={
                "device": "cuda:0",
                "kernels": [
                    {"kernel": "attention, hopper", "shape": "1 × 4608 tokens", "milliseconds": 0.5, "tflops": 521.7},
                    {"kernel": "group norm", "shape": "9 rows", "milliseconds": 0.25, "gigabytes_per_second": 4000.4},
                    {"kernel": "linear, e4m3", "shape": "1 rows", "milliseconds": None, "skipped": "no fp8"},
                ],
            },
            torch_kernels={
                "kernels": [
                    {"kernel": "attention, cuDNN", "kind": "attention", "shape": [1, 24, 4608, 128], "failure": "refused"},
                    {"kernel": "product, cuBLAS", "kind": "product", "shape": [9, 8, 7], "milliseconds": 1, "tflops": 700.4},
                ]
            },
            kernel_times={"kernels": [{"kernel": "gemm", "grid": "(1, 2, 3)", "launches": 57, "milliseconds": 12.3456}]},
        )
        for line in [
            "| attention, hopper | fluxserve | 1 × 4608 tokens | 0.500 | 522 | – |",
            "| group norm | fluxserve | 9 rows | 0.250 | – | 4000 |",
            "| linear, e4m3 | fluxserve | 1 rows | – | no fp8 | – |",
            "| attention, cuDNN | torch | 1×24×4608×128 | – | refused | – |",
            "| product, cuBLAS | torch | 9×8×7 | 1.000 | 700 | – |",
            "| gemm | (1, 2, 3) | 57 | 12.346 |",
        ]:
            self.assertIn(line + "\n", text)


class Profile(unittest.TestCase):
    def test_launches_of_a_kernel_add_up_by_their_grid(self) -> None:
        lines = [
            "==PROF== Connected",
            '"ID","Kernel Name","Grid Size","Metric Name","Metric Unit","Metric Value"',
            '"0","gemm","(2, 1, 1)","gpu__time_duration.sum","us","1,500.0"',
            '"1","gemm","(2, 1, 1)","gpu__time_duration.sum","ns","500,000"',
            '"2","gemm","(4, 1, 1)","gpu__time_duration.sum","ms","3"',
            '"3","gemm","(4, 1, 1)","something else","ms","9"',
        ]
        self.assertEqual(
            [(total["grid"], total["launches"], total["milliseconds"]) for total in kernel_times.totals(lines)],
            [("(4, 1, 1)", 1, 3.0), ("(2, 1, 1)", 2, 2.0)],
        )
        self.assertEqual(kernel_times.totals(["==ERROR== no permission"]), [])


class Scripts(unittest.TestCase):
    def test_all_scripts_are_python(self) -> None:
        """Also those that import torch."""
        for file in Path(__file__).parent.glob("*.py"):
            compile(file.read_text(), file, "exec")


class Weights(unittest.TestCase):
    def test_a_folder_with_other_files_is_not_touched(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "image.png").touch()
            with self.assertRaisesRegex(SystemExit, "name another folder"):
                self.make(folder)
            (folder / "model_index.json").touch()
            self.assertIn("used as it is", self.make(folder))
            self.assertEqual(sorted(file.name for file in folder.iterdir()), ["image.png", "model_index.json"])

    def make(self, folder: Path) -> str:
        given, sys.argv = sys.argv, ["make_weights.py", str(folder), "--preset", "tiny"]
        try:
            with contextlib.redirect_stdout(io.StringIO()) as output:
                make_weights.main()
            return output.getvalue()
        finally:
            sys.argv = given
