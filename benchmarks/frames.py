"""Frames on time, dropped, and how long they take: a street's video through NanoDet at 25 frames/s, with company.

    python benchmarks/frames.py [1:latest:4 ...]

Plays the video in real time over WebSocket, once and four times at once, with each policy, alone and beside clients
that ask EfficientNet-Lite0 on the same server in a closed loop. What is found in the frames is held against what a
plain request finds. Server and clients share the machine.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from farthing.cli.demo_server import serving_models
from farthing.cli.demo_tasks.objects import objects_in, pixels_of
from farthing.client import Client
from farthing.client.frames import FrameResult, Frames
from farthing.repository.samples import input_folder, sample_path

FRAMES_PER_S = 25
DEADLINE_MS = 100
MODEL = "nanodet-g"
COMPANY = "effnet-lite0"
LINES = ["0::4", "1:latest:0", "1:all:0", "1:latest:4", "1:all:4", "1:latest:16", "4:latest:0", "4:latest:4", "4:all:4"]
CHECK_EVERY = 10
"""Frames of which the objects are compared, in each stream."""


def read_video(count: int) -> list[np.ndarray[Any, Any]]:
    """The first frames, blue first."""
    video = cv2.VideoCapture(str(input_folder("street-video") / "bikes.mp4"))
    pictures = []
    while len(pictures) < count:
        is_there, picture = video.read()
        if not is_there:
            break
        pictures.append(picture)
    return pictures


@dataclass
class Camera:
    """One stream: a thread that sends at the video's pace, and one that reads."""

    url: str
    policy: str
    tensors: list[np.ndarray[Any, Any]]
    frames: int
    offset_s: float
    deadline_ms: float
    sent_s: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    answers: dict[int, FrameResult] = field(default_factory=dict)
    statuses: list[str] = field(default_factory=list)

    def play(self) -> None:
        with (
            Client(self.url) as client,
            client.frames(MODEL, policy=self.policy, deadline_ms=self.deadline_ms) as stream,
        ):
            self.stream = stream
            reader = threading.Thread(target=self.read, args=(stream,))
            reader.start()
            start_s = time.perf_counter() + self.offset_s
            for number in range(self.frames):
                time.sleep(max(0.0, start_s + number / FRAMES_PER_S - time.perf_counter()))
                self.sent_s.append(time.perf_counter())
                stream.send({"image": self.tensors[number % len(self.tensors)]})
            stream.end()
            reader.join()

    def read(self, stream: Frames) -> None:
        for result in stream:
            self.statuses.append(result.reason if result.status == "dropped" else result.status)
            if result.status == "ok":
                self.latencies_ms.append((time.perf_counter() - self.sent_s[result.frame - 1]) * 1e3)
                if result.frame % CHECK_EVERY == 0:
                    self.answers[result.frame] = result


@contextmanager
def company(url: str, clients: int) -> Iterator[None]:
    """Clients of another model in a process of their own."""
    if not clients:
        yield
        return
    process = subprocess.Popen([sys.executable, __file__, "--company", url, "--clients", str(clients)])
    try:
        time.sleep(1.0)  # until it has begun
        yield
    finally:
        process.terminate()
        process.wait()


def keep_company(url: str, clients: int) -> None:
    picture = np.random.default_rng(1).normal(size=(1, 3, 224, 224)).astype(np.float32)

    def ask() -> None:
        with Client(url) as client:
            while True:
                client.infer(COMPANY, {"image": picture})

    for _ in range(clients):
        threading.Thread(target=ask, daemon=True).start()
    threading.Event().wait()


@contextmanager
def models(threads: int) -> Iterator[list[str]]:
    """What to serve: the samples, or copies of them that say how many threads they want."""
    if not threads:
        yield [f"sample:{MODEL}", f"sample:{COMPANY}"]
        return
    said = f"\n[parameters]\nintra_op_thread_count = {threads}\n"
    with tempfile.TemporaryDirectory() as name:
        for model in (MODEL, COMPANY):
            copied = shutil.copytree(sample_path(model), Path(name) / model)
            with (copied / "model.toml").open("a") as config:
                config.write(said)
        yield [name]


def answered_so_far(client: Client) -> int:
    return sum(int(entry["inference_count"]) for entry in client.statistics(COMPANY))


def wrong_frames(url: str, cameras: list[Camera], pictures: list[np.ndarray[Any, Any]]) -> tuple[int, int]:
    """How many of the checked frames were compared, and in how many other objects were found than by a request."""
    compared = wrong = 0
    with Client(url) as client:
        direct: dict[int, Any] = {}
        for camera in cameras:
            for number, result in camera.answers.items():
                at = (number - 1) % len(pictures)
                height, width = pictures[at].shape[:2]
                if at not in direct:
                    direct[at] = objects_in(client.infer(MODEL, {"image": pixels_of(pictures[at])}), height, width)
                found = objects_in(result, height, width)
                is_same = [(name, box) for name, _, box in found] == [(name, box) for name, _, box in direct[at]]
                is_near = np.allclose(
                    [score for _, score, _ in found], [score for _, score, _ in direct[at]], atol=1e-3
                )
                compared += 1
                wrong += not (is_same and is_near)
    return compared, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=8, help="of each line")
    parser.add_argument("--deadline-ms", type=float, default=DEADLINE_MS, help="from a frame's arrival to its answer")
    parser.add_argument("--threads", type=int, default=0, help="of each model's engine; 0: as the server settles it")
    parser.add_argument("lines", nargs="*", default=LINES, help="streams:policy:clients of the other model")
    parser.add_argument("--company", help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.company:
        keep_company(options.company, options.clients)
        return
    pictures = read_video(100)
    tensors = [pixels_of(picture) for picture in pictures]
    print(f"{'streams':<22}{'company':>9} | {'frames':>6} {'on time':>8} {'late':>5} | dropped:", end="")
    print(f" {'newer':>6} {'late':>5} {'full':>5} | {'p50':>6} {'p95':>6} {'p99':>6} ms | {'others/s':>8} | wrong")
    with models(options.threads) as sources, serving_models(sources) as url:
        with Client(url) as client:
            for _ in range(20):
                client.infer(MODEL, {"image": tensors[0]})
        for line in options.lines:
            streams, policy, clients = int(line.split(":")[0]), line.split(":")[1], int(line.split(":")[2])
            frames = int(options.seconds * FRAMES_PER_S)
            cameras = [
                Camera(url, policy, tensors, frames, number * 0.011, options.deadline_ms) for number in range(streams)
            ]
            with company(url, clients), Client(url) as client:
                before, began_s = answered_so_far(client), time.perf_counter()
                threads = [threading.Thread(target=camera.play) for camera in cameras]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                if not threads:
                    time.sleep(options.seconds)
                others = (answered_so_far(client) - before) / (time.perf_counter() - began_s)
            summaries = [camera.stream.summary for camera in cameras]
            for camera, summary in zip(cameras, summaries, strict=True):
                told = summary["on_time"] + summary["late"] + summary["failed"] + sum(summary["dropped"].values())
                assert summary["received"] == told == len(camera.statuses) == frames
            on_time = sum(summary["on_time"] for summary in summaries)
            late = sum(summary["late"] for summary in summaries)
            newer, hopeless, full = (
                sum(summary["dropped"][reason] for summary in summaries)
                for reason in ("superseded", "late", "overload")
            )
            latencies = [latency for camera in cameras for latency in camera.latencies_ms]
            p50, p95, p99 = np.percentile(latencies, (50, 95, 99)) if latencies else (0, 0, 0)
            compared, wrong = wrong_frames(url, cameras, pictures)
            name = f"{streams} x 25/s, {policy}" if streams else "none"
            print(
                f"{name:<22}{clients:>9} | {streams * frames:>6} {on_time:>8} {late:>5} |"
                f"          {newer:>6} {hopeless:>5} {full:>5} | {p50:>6.1f} {p95:>6.1f} {p99:>6.1f}    |"
                f" {others:>8.1f} | {wrong} of {compared}"
            )
            if streams > 1:
                each = sorted(summary["on_time"] for summary in summaries)
                print(f"{'':<22}{'':>9} | on time, by stream: {', '.join(map(str, each))}")


if __name__ == "__main__":
    main()
