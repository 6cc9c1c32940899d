"""Every equation that the code cites has a test, listed here: of what is printed, or beside another program."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = {  # (source, number of the equation): the test that evaluates it
    ("the paper", 1): "test_corruption.py::test_paper_eq1_eq2_as_printed",
    ("the paper", 2): "test_corruption.py::test_paper_eq1_eq2_as_printed",
    ("the paper", 3): "test_bayes.py::test_eq3_kl_by_monte_carlo",
    ("the paper", 14): "test_bayes.py::test_paper_eq14_gradients_of_theta_as_printed",
    ("DDPM", 4): "test_schedule.py::test_ddpm_eq4_q_sample",
    ("DDPM", 6): "test_schedule.py::test_ddpm_eq6_7_posterior",
    ("DDPM", 7): "test_schedule.py::test_ddpm_eq6_7_posterior",
    ("DDPM", 15): "test_schedule.py::test_ddpm_eq15_x0_from_eps",
    ("DDIM", 9): "test_schedule.py::test_ddpm_eq15_x0_from_eps",
    ("DDIM", 12): "test_schedule.py::test_ddim_eq12_step",
    ("DDIM", 16): "test_schedule.py::test_ddim_eq16_sigma",
    ("Ho & Salimans", 6): "test_guidance.py::test_ho_and_salimans_eq6_as_printed",
    ("UPM", 7): "test_guidance.py::test_upm_eq7_unconditional_of_the_base",
    ("UPM", 8): "test_guidance.py::test_upm_eq8_two_conditions",
    ("Kingma & Welling", 10): "test_networks.py::test_kingma_and_welling_eq10_as_printed",
    ("Vaswani", 1): "test_networks.py::test_vaswani_eq1_attention_as_printed",
    ("Hu", 3): "test_adapters.py::test_lora_eq3_is_w_plus_scaled_b_a",
    ("Liu", 1): "test_flow.py::test_liu_eq1_flow_loss_as_printed",
    ("Ledoit & Wolf", 14): "test_fitted_noise.py::test_ledoit_wolf_2004_eq_14_as_printed",
    ("Immerkær", 4): "test_metrics.py::test_immerkaer_1996_as_printed",
    ("Székely & Rizzo", 5): "test_recipe.py::test_energy_distance_is_that_of_scipy",
    ("Chen", 1): "test_metrics.py::test_simclr_eq1_as_printed",
    ("Zhang", 1): "test_photo_metrics.py::test_lpips_eq1_as_printed",
}
OTHER_NAMES = {"SimCLR": "Chen"}
OF_A_FILE = {"minibnn/neighbours/guidance.py": "UPM"}  # what an equation without a source belongs to; else the paper
SOURCES = {source for source, _ in TESTS} | set(OTHER_NAMES)
NUMBERS = re.compile(r"\b[Ee]q(?:s?\.|uations?)\s+(\(?\d+\)?(?:(?:[-–]|,\s+|\s+and\s+)\(?\d+\)?)*)")
AUTHORS = re.compile(r"([^\W\d_][\w-]+(?: & [^\W\d_][\w-]+)?)(?: et al\.)?,?\s+\(?(?:19|20)\d\d")  # and the year


def cited(path):
    """The equations that a file cites: {(source, number)}."""
    text = path.read_text(encoding="utf-8")
    return cited_in(text, OF_A_FILE.get(path.relative_to(ROOT).as_posix(), "the paper"))


def cited_in(text, otherwise="the paper"):
    """The same of a text. The source is the last one that is named before, if it is near, or else `otherwise`.

    Sources are those of SOURCES, and all authors with a year, so that one who is not listed is found too.
    """
    found = set()
    for match in NUMBERS.finditer(text):
        before = text[max(0, match.start() - 90) : match.start()].rpartition("\n\n")[2]
        near = [(named.end(1), named[1]) for named in AUTHORS.finditer(before)]
        for source in SOURCES:
            near += [(named.end(), source) for named in re.finditer(rf"(?<!\w){re.escape(source)}(?!\w)", before)]
        source = max(near, key=lambda named: (named[0], len(named[1])))[1] if near else otherwise
        for several in re.split(r",\s+|\s+and\s+", match[1]):
            ends = [int(number) for number in re.findall(r"\d+", several)]
            found |= {(OTHER_NAMES.get(source, source), number) for number in range(ends[0], ends[-1] + 1)}
    return found


def test_every_equation_that_is_cited_has_a_test():
    files = [path for folder in ("minibnn", "kernels") for path in (ROOT / folder).rglob("*.py")]
    everywhere = {citation: path for path in files for citation in cited(path)}
    missing = {citation: path.name for citation, path in everywhere.items() if citation not in TESTS}
    assert not missing, missing
    assert set(TESTS) <= set(everywhere), f"no longer cited: {set(TESTS) - set(everywhere)}"


@pytest.mark.parametrize(
    ("text", "citations"),
    [
        ("DDPM eqs. 4 and 9", {("DDPM", 4), ("DDPM", 9)}), ("DDPM eq. 4, 9", {("DDPM", 4), ("DDPM", 9)}),
        ("DDPM, eqs. 6–7", {("DDPM", 6), ("DDPM", 7)}), ("(DDPM, eqs. 6-7)", {("DDPM", 6), ("DDPM", 7)}),
        ("DDPM eq.\n    9", {("DDPM", 9)}), ("DDPM eq. (9)", {("DDPM", 9)}), ("equation 9 of it", {("the paper", 9)}),
        ("Huang et al. 2024, eq. 3", {("Huang", 3)}), ("Song et al. (2021), eq. 14", {("Song", 14)}),
        ("Ho & Salimans 2022, eq. 6", {("Ho & Salimans", 6)}), ("SimCLR eq. 1", {("Chen", 1)}),
        ("Song et al. 2021 differ from DDPM eq. 4", {("DDPM", 4)}),
        ("DDPM eq. 4.\n\nEq. 2", {("DDPM", 4), ("the paper", 2)}),
    ],
)
def test_citations_are_read(text, citations):
    assert cited_in(text) == citations


@pytest.mark.parametrize("test", sorted(set(TESTS.values())))
def test_the_tests_are_there(test):
    file, name = test.split("::")
    assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")
