"""What the public lists have, by facts only: which fault, and with what numbers.

``DEEPCNN``: the 22 ``deepCNN`` programs of TheDeepChecker (repository thedeepchecker/thedeepchecker, folder
buggy_synthetic_programs; Braiek and Khomh 2022, doi:10.1145/3529318). The sound program has BatchNorm behind each ReLU.
``POSTS``: the questions of its pitfalls_data.csv whose comment names BatchNorm or the batch size, and the programs of
defects4ML that come nearest to BatchNorm, played as the kind that their title or description names.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812
from training import (
    RATE,
    Channelwise,
    Program,
    along_batch,
    arbitrary,
    constant,
    entropy,
    erased,
    momentum,
    network,
    of_probabilities,
)

CLEAN = Program("clean", "nothing")

DEEPCNN: tuple[Program, ...] = (
    CLEAN,
    Program("high_lr", "learning rate 100 times as high", ("BN704",), minimizer=momentum(100 * RATE)),
    Program(
        "low_lr",
        "learning rate a hundredth",
        why="it learns, slowly: BN705 speaks where nothing moves",
        minimizer=momentum(RATE / 100),
    ),
    Program(
        "low_eps",
        "Adam with a rate of 0.01 and an eps of 1e-16",
        why="a matter of the optimizer",
        minimizer=lambda model: torch.optim.Adam(model.parameters(), 0.01, eps=1e-16),
    ),
    Program("flip_sign", "gradients with the wrong sign", why="a matter of the gradients", sign=-1.0),
    Program(
        "miss_batchnorm",
        "no BatchNorm at all",
        why="there is no layer to watch",
        make=lambda: network(norm=False),
    ),
    Program(
        "miss_infer_batchnorm",
        "running statistics are never updated",
        ("BN302", "BN303", "BN404"),
        momentum=0.0,
    ),
    Program("miss_norm", "pixels from 0 to 255", ("BN108",), prepare=lambda x: x),
    Program(
        "dbl_norm",
        "pixels divided twice",
        ("BN105", "BN108"),
        prepare=lambda x: x / 255 / 255,
    ),
    Program(
        "constant",
        "every weight starts at 0.01",
        ("BN708",),
        start=constant,
    ),
    Program("random", "weights start with a deviation of 0.25", why="BatchNorm undoes the scale", start=arbitrary),
    Program("wrong_act", "softmax as activation", ("BN105",), make=lambda: network(act=Channelwise)),
    Program(
        "over_reg",
        "dropout of 0.5 before each second convolution",
        ("BN802",),
        "with statistics estimated anew without dropout it classifies 68 % instead of 36 %",
        make=lambda: network(between=0.5, drops=(0.5,) * 4),
    ),
    Program(
        "miss_reg",
        "neither dropout nor BatchNorm",
        why="there is no layer to watch",
        make=lambda: network(norm=False, drops=(0.0,) * 4),
    ),
    Program(
        "wrong_augm",
        "noise, and half of the images erased by 40 to 80 %",
        ("BN603",),
        augment=erased,
    ),
    Program(
        "wrong_lbl",
        "images are shuffled, labels are not",
        why="labels never reach BatchNorm",
        labels=lambda y: y[torch.randperm(len(y))],
    ),
    Program("unb_data", "classes rarer and rarer", why="batches are alike: nothing for BatchNorm", rare=True),
    Program(
        "inap_loss",
        "squared error of the probabilities",
        why="a matter of the loss",
        loss=lambda z, y: F.mse_loss(z.softmax(1), F.one_hot(y, 10).float()),
    ),
    Program(
        "wrong_loss",
        "the loss is summed over the batch",
        ("BN704",),
        "the rate is 64 times as high",
        loss=lambda z, y: of_probabilities(z.softmax(1), y).sum(),
    ),
    Program(
        "wrong_loss2",
        "the loss is reduced along the batch",
        why="the rate is 6 times as high, which still trains",
        loss=along_batch,
    ),
    Program(
        "miss_soft",
        "logits taken for probabilities",
        why="a matter of the loss",
        loss=lambda z, y: of_probabilities(z, y).mean(),
    ),
    Program("red_soft", "softmax twice", why="a matter of the loss", loss=lambda z, y: entropy(z.softmax(1), y)),
    Program(
        "wrong_soft",
        "softmax along the batch",
        why="a matter of the loss",
        loss=lambda z, y: of_probabilities(z.softmax(0), y).mean(),
    ),
)
"""The sound program first, then the 22."""

POSTS: tuple[Program, ...] = (
    Program("48320854, 59648509", "batches of one sample", ("BN201",), make=lambda: network(hidden=False), batch=1),
    Program(
        "43234667, 45497342",
        "statistics that the evaluation uses are never updated",
        ("BN302", "BN303", "BN404"),
        momentum=0.0,
    ),
    Program(
        "52279892, 59076114",
        "statistics move by a hundredth a step, as Keras has it, and are used after a few",
        ("BN303", "BN304"),
        momentum=0.01,
    ),
    Program("39691902", "dropout before BatchNorm", ("BN802",), make=lambda: network(between=0.5)),
    Program(
        "52282108",
        "a backbone is frozen, its statistics move with other data",
        ("BN402",),
        prepare=lambda x: 2 * x / 255 + 0.5,
        tuned=True,
    ),
    Program("43436966", "no BatchNorm", why="there is no layer to watch", make=lambda: network(norm=False)),
    Program("defects4ML 034", "training data are not shuffled", ("BN601",), shuffle=False),
    Program("defects4ML 100", "inputs are not normalized", ("BN108",), prepare=lambda x: x),
    Program("defects4ML 030", "batches of an unsuitable size", ("BN201",), batch=4),
)
"""Stack Overflow questions by number; what exactly their programs did has not been verified."""
