"""An application: answers each line in capitals."""

from line_protocol import LineTask


def process(task: LineTask) -> None:
    task.resp.text = task.req.upper()
