"""What the columns of a report's tables mean, as a list above each table.

    explained("| setting | noise |\\n…", [None, "in percent"])  ->  "- **noise**: in percent\\n\\n| setting | noise …"
"""

LIKE_THE_LAST = "like the last"  # of a column that the sentence of the one before explains too


def explained(table, meanings):
    """A Markdown table below a list of what its columns mean.

    meanings: for each column a sentence without its full stop; None where the page explains it elsewhere;
    LIKE_THE_LAST where the sentence before counts for it too. Raises ValueError where one is missing.
    """
    names = [name.strip() for name in table.splitlines()[0].strip("| ").split("|")]
    found = []
    for name, meaning in zip(names, meanings, strict=True):
        if meaning == LIKE_THE_LAST:
            found[-1][0].append(name)
        elif meaning:
            found.append(([name], meaning))
    listed = [f"- {', '.join(f'**{name}**' for name in own)}: {meaning}" for own, meaning in found]
    return "\n".join(listed) + f"\n\n{table}"
