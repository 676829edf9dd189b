"""What the command does unless options say otherwise."""

from __future__ import annotations

from pathlib import Path

MODEL = "mobilenet1.0"
EPOCHS, BATCH_SIZE = 10, 32
BACKBONE_MULT = 0.1  # of a network with loaded weights, without --lr-mult and --freeze
FEATURE_MEMORY = 1024  # MB
VAL_SPLIT = 0.2  # of a folder without val
RUN_FOLDER, DEMO_FOLDER = Path("runs/finetune"), Path("runs/digits")  # with --data and without
DEMO_EPOCHS, DEMO_BATCH_SIZE = 12, 10
