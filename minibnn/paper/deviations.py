"""Where the paper's text, the authors' released scripts and this command differ. Printed in every report.

The scripts are those of github.com/Nicholas0228/BNN-Finetuning-DMs.
"""

DEVIATIONS = (  # (point, the paper's text, the authors' scripts, here)
    ("random layers", "all linear layers except cross-attention: 26.3 % of SD v1.5", "without the time layers: 23.1 %",
     "as --as says"),
    ("SD v2: linear proj_in, proj_out", "the same rule, which takes them in", "random (128 layers)",
     "random with both"),
    ("Table 3, up blocks", "about 13.8 %", "reached with all time layers: 13.83 %", "these, 13.83 %, with both"),
    ("Table 3, CrossAttn", "BNN in cross-attention", "added to the default layers", "both rows"),
    ("rare word", "[V]", "qwe", "sks with --as paper, qwe with --as authors"),
    ("captions", "a photo of a [V] dog", "a photo of qwe dog; of the class: a photo of dog", "as --as says; "
     "for the bundled models the pictures' own, with place"),
    ("prompts that are drawn", "Table 5 for all objects", "Table 5 for cats and dogs; for things 15 of its prompts and "
     "10 others", "as --as says"),
    ("prior preservation of LoRA and OFT", "none (App. H.1)", "with it", "as --as says"),
    ("class pictures", "200 for each training picture", "200 for each class, by PNDM in half precision, as JPEG",
     "as --as says (count and sampler); always in the training's precision, as PNG"),
    ("random part of LoRA", "the up matrix", "that of all blocks; the switches for blocks that its script sets do "
     "nothing", "that of all blocks with both"),
    ("random part of OFT", "Q", "that of the up blocks alone", "as --as says"),
    ("constrained OFT", "not mentioned", "a radius 6e-5·b²/√r on Q, switched off", "off"),
    ("optimiser", "not mentioned", "8-bit Adam for DreamBooth and OFT without BNN, 32-bit for DreamBooth with BNN",
     "32-bit AdamW for all: otherwise with and without differ in more than the BNN"),
    ("weight decay of σ", "not mentioned", "0.01", "none: it would pull σ towards 0"),
    ("direction of the KL", "Eq. 3: KL(Q‖P); Algorithm 1: KL(P‖Q)", "KL(P‖Q)",
     "KL(Q‖P) with --as paper, KL(P‖Q) with --as authors; it counts where λ > 0: in v1.4's row and in Fig. 9"),
    ("precision", "not mentioned", "float32, training and drawing", "--dtype; float32 with --as authors"),
    ("crop of the pictures", "not mentioned", "bilinear, random", "Lanczos, centred: no randomness besides the seed's"),
    ("order of the pictures", "not mentioned", "each picture always beside the same class picture",
     "independent permutations"),
    ("training pictures, as Clip-I and Dino see them", "not mentioned", "the files as they are",
     "the squares that the training sees"),
    ("prompts, as Clip-T sees them", "not mentioned", "with the rare word", "with the rare word"),
    ("seeds", "5", "seed 0 in the scripts", "--seeds, 5 by default"),
    ("columns of Figs. 2, 7, 8 and 9", "in the pictures alone", "none", "chosen here: see the plan"),
    ("what is drawn with", "4 pictures for each of 25 prompts", "PNDM, 50 steps, guidance 7.5", "the same; the noise "
     "is that of the training's seed, the same with and without BNN"),
    ("user study (Table 4)", "101 people", "none", "left out"),
)


def markdown():
    """The table in Markdown."""
    lines = ["| point | the paper's text | the authors' scripts | here |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in DEVIATIONS]) + "\n"
