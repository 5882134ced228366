"""What the stages use of the machine: peak memory, and the GPU's clock while it was busy."""

import shutil
import statistics
from pathlib import Path

from processes import Command, Limits

MILLISECONDS = 100
BUSY_PERCENT = 50


class Watch:
    """One `nvidia-smi` for the whole run. While it runs, the driver does not shut the GPU down between two stages."""

    def __init__(self, gpu: str | None, limits: Limits) -> None:
        self.gpu, self.limits = gpu, limits
        self.smi: Command | None = None
        self.peak = 0
        self.clocks: list[int] = []

    def begin(self) -> None:
        """Starts anew for a stage."""
        if self.gpu is not None and (self.smi is None or self.smi.has_ended()):
            self.stop()
            self.start(self.gpu)
        self.peak, self.clocks = 0, []

    def start(self, gpu: str) -> None:
        """One line each time: MiB in use, MHz, percent busy."""
        fields = "--query-gpu=memory.used,clocks.sm,utilization.gpu"
        words = ["nvidia-smi", fields, "--format=csv,noheader,nounits", "-i", gpu, "-lms", str(MILLISECONDS)]
        buffered_by_line = ["stdbuf", "-oL"] if shutil.which("stdbuf") else []
        try:
            self.smi = Command([*buffered_by_line, *words], self.read)
        except OSError:
            self.smi = None

    def read(self, line: str) -> None:
        try:
            used, clock, busy = (int(value) for value in line.split(","))
        except ValueError:
            return
        self.peak = max(self.peak, used)
        if busy >= BUSY_PERCENT:
            self.clocks.append(clock)

    def look_at(self, process: int) -> None:
        """Without a GPU, the memory of the process counts."""
        if self.gpu is None:
            try:
                status = Path(f"/proc/{process}/status").read_text()
            except OSError:
                return
            lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
            self.peak = max([self.peak] + [int(line.split()[1]) // 1024 for line in lines])

    def reading(self) -> dict:
        clock = {"busy_sm_clock_mhz": int(statistics.median(self.clocks))} if self.clocks else {}
        return {"peak_mebibytes": self.peak, "peak_on": "CPU" if self.gpu is None else "GPU"} | clock

    def stop(self) -> None:
        if self.smi:
            self.smi.end(self.limits)
            self.smi = None
