"""The options that belong to one method of fine-tuning, and what they are where nobody says otherwise."""

LAYERS = "to_q,to_k,to_v,to_out.0"  # those that an adapter is attached to, as diffusers' scripts do
OWN = {
    "dreambooth": {"where": "paper"},
    "lora": {"rank": 4, "alpha": None, "layers": LAYERS, "export": None},
    "oft": {"blocks": 4, "coft": None, "layers": LAYERS, "where": None},
}
OWNED = tuple(dict.fromkeys(name for own in OWN.values() for name in own))  # the names of them all


def owners_of(name):
    """The methods to which an option belongs: a list of their names."""
    return [method for method, own in OWN.items() if name in own]
