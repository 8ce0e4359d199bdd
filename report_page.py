"""An audit as one HTML page that depends on nothing: for a person who has to act on it.

    page = html_of(title, facts, conclusion, outcomes)

It is readable on a phone, and on paper. Whatever comes from a file, names above all, is escaped.
"""

import base64
import io
from html import escape

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  max-width: 50rem; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; } h3 { font-size: 1rem; }
.answer { font-size: 1.25rem; font-weight: 600; border: 2px solid; border-radius: .4rem;
  padding: .7rem 1rem; }
.stands { color: #a01020; background: #fdf0f1; }
.unsure { color: #7a5200; background: #fdf7e8; }
.nothing { color: #1d5c34; background: #eff8f1; }
table { border-collapse: collapse; } td, th { text-align: left; vertical-align: top;
  padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd; font-weight: normal; }
th { color: #555; white-space: nowrap; } td.number { text-align: right; white-space: nowrap; }
pre { background: #f5f5f7; padding: .6rem; overflow-x: auto; font-size: .8rem; }
pre.command { white-space: pre-wrap; }
.figure { overflow-x: auto; } img { width: 100%; min-width: 40rem; height: auto; }
@media print { h2, h3 { break-after: avoid; } img { break-inside: avoid; min-width: 0; }
  pre { white-space: pre-wrap; } }
"""
BACKDOOR = (
    "A backdoored network answers as it should, until a picture bears a small mark, the trigger:"
    " then it answers the class its maker chose, the target, whatever else is shown. Nobody who is"
    " handed a network knows the trigger. This audit looks for such a class in the network itself,"
    " with clean pictures alone. An explanation, or map, shows which places of a picture the"
    " network's answer depends on."
)
INDEX = (
    "The anomaly index says how far the most unusual class lies from the middle of all classes:"
    " NeuronInspect counts robust standard deviations, Neural Cleanse how many times smaller"
    " its patch is than the usual one. Some class is always the most unusual one."
)
ANSWER_STYLES = {True: "stands", None: "unsure", False: "nothing"}


def html_of(title, facts, conclusion, outcomes):
    """The page as text.

    title: of the page; facts: (label, text) pairs on what was looked at; conclusion, outcomes: see
    conclusions.py.
    """
    style = ANSWER_STYLES[conclusion.backdoored]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="answer {style}">{escape(conclusion.heading)}</p>',
        paragraph(conclusion.meaning),
        "<h2>What a backdoor is</h2>",
        paragraph(BACKDOOR),
        "<h2>What stands out</h2>",
        listed(conclusion.found),
        "<h2>How sure is that?</h2>",
        paragraph(INDEX),
        listed(conclusion.sure),
        "<h2>What to do next</h2>",
        *map(step, conclusion.steps),
        "<h2>What this cannot see</h2>",
        listed(conclusion.unseen),
        "<h2>What was looked at</h2>",
        table([(label, text, "") for label, text in facts]),
        "<h2>Where the minutes go</h2>",
        table([(part.title, duration_of(part), "number") for part in outcomes]),
        "<h2>The parts</h2>",
        *map(section, outcomes),
    ]
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(body) + "\n</body>\n</html>\n"


def paragraph(text):
    """A text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def listed(sentences):
    """Sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in sentences) + "</ul>"


def table(rows):
    """Rows of (label, text, the text's style) as a table."""
    cells = [
        f'<tr><th scope="row">{escape(label)}</th><td class="{style}">{escape(text)}</td></tr>'
        for label, text, style in rows
    ]
    return "<table>" + "".join(cells) + "</table>"


def step(sentence_and_command):
    """What to do next, and the command line, where there is one."""
    sentence, command = sentence_and_command
    line = f'<pre class="command">{escape(command)}</pre>' if command else ""
    return paragraph(sentence) + line


def duration_of(part):
    """How long a part took."""
    seconds = part.seconds
    took = f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"
    return took if part.verdict else f"{took}, not done"


def section(part):
    """One part: its figure, and its lines as the terminal has them."""
    parts = [f"<h3>{escape(part.title)}</h3>", paragraph(f"{part.name}: {part.meaning}")]
    if part.verdict is None:
        return parts[0] + paragraph(f"Not done: {part.reason.rstrip('.')}.")
    if part.verdict.picture is not None:
        alternative = escape(f"Figure of {part.title}", quote=True)
        image = f'<img src="{data_uri(part.verdict.picture)}" alt="{alternative}">'
        parts.append(f'<div class="figure">{image}</div>')
    lines = "\n".join(part.verdict.lines)
    return "\n".join([*parts, f"<pre>{escape(lines)}</pre>"])


def data_uri(picture):
    """A PIL image as the address of itself, a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
