"""What a page holds, for tests of reports: its elements, its text, and whether its tags nest."""

from html.parser import HTMLParser

HOSTILE = "<script>alert(1)</script>\" onload='x'&amp;"
META = {"meta", "img"}


class Reader(HTMLParser):
    """Every element with its attributes, the text outside of <style>, and whether the tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = self.style = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in META:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.text += " " + data

    def with_class(self, name):
        return [attrs for _, attrs in self.elements if name in attrs.get("class", "").split()]

    def all(self, tag):
        return [attrs for found, attrs in self.elements if found == tag]
