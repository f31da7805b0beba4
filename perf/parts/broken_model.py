"""A bundle whose native library fails, or takes long, when a file says so.

The library calls the bundle's own one, so that the checks of the bundle pass. The file holds a letter:

    n   the model gives no number for any payment
    h   it gives none for one payment in ten
    s   a call takes 60 ms longer
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

from paywarden.models.bundle.bundle import MANIFEST, native_library

_SOURCE = r"""
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <unistd.h>

static void *library(void) {
    static void *handle;
    if (!handle) handle = dlopen(ORIGINAL, RTLD_NOW | RTLD_LOCAL);
    return handle;
}

static char mode(void) {
    char letter = 0;
    int file = open(CONTROL, O_RDONLY);
    if (file >= 0) {
        if (read(file, &letter, 1) != 1) letter = 0;
        close(file);
    }
    return letter;
}

int32_t paywarden_feature_count(void) {
    return ((int32_t (*)(void))dlsym(library(), "paywarden_feature_count"))();
}

void paywarden_margins(const float *rows, int64_t count, double *margins) {
    static uint64_t turns;
    ((void (*)(const float *, int64_t, double *))dlsym(library(), "paywarden_margins"))(rows, count, margins);
    char letter = mode();
    if (letter == 's') usleep(60000);
    for (int64_t row = 0; row < count; row++)
        /* A payment that failed is scored again, alone: that call fails as well. */
        if (letter == 'n' || (letter == 'h' && ++turns % 20 < 2)) margins[row] = NAN;
}
"""


class BrokenModel:
    """A copy of a bundle with such a library, in `folder`."""

    def __init__(self, folder: Path, bundle: Path, *, version: str = "") -> None:
        self.bundle, self._control = folder / "bundle", folder / "control"
        folder.mkdir(parents=True)
        shutil.copytree(bundle, self.bundle)
        library = native_library(self.bundle)
        original = folder / "original.so"
        shutil.copy(library, original)
        source = folder / "library.c"
        source.write_text(_SOURCE, encoding="utf-8")
        names = [f'-DORIGINAL="{original}"', f'-DCONTROL="{self._control}"']
        command = ["gcc", "-shared", "-fPIC", "-O2", *names, str(source), "-o", str(library), "-ldl"]
        subprocess.run(command, check=True)
        build = library.parent / "build.json"
        content = json.loads(build.read_text(encoding="utf-8"))
        content["sha256"] = hashlib.sha256(library.read_bytes()).hexdigest()
        build.write_text(json.dumps(content), encoding="utf-8")
        if version:
            manifest = self.bundle / MANIFEST
            content = json.loads(manifest.read_text(encoding="utf-8"))
            content["model_version"] = version
            manifest.write_text(json.dumps(content), encoding="utf-8")

    def fail(self, letter: str = "n") -> None:
        """Let it fail from now on."""
        self._control.write_text(letter, encoding="utf-8")

    def heal(self) -> None:
        self._control.unlink(missing_ok=True)
