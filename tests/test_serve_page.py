"""The page of a service, in a browser: what a person sees."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from kept import SHAPE
from served import Server, serving


@pytest.fixture(scope="module")
def server(asked_images, tmp_path_factory) -> Iterator[Server]:
    with serving(asked_images, tmp_path_factory.mktemp("server"), "window=1..2") as found:
        yield found


@contextmanager
def page_of(chromium, url: str) -> Iterator[tuple]:
    """The page of a service, and what the browser complains about."""
    context = chromium.new_context()
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    yield page, said
    context.close()


def test_a_person_draws_and_sees_what_each_exit_says(server, chromium):
    with page_of(chromium, server.url) as (page, said):
        canvas = page.locator("#canvas")
        box = canvas.bounding_box()
        middle = box["x"] + box["width"] / 2
        page.mouse.move(middle, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(middle, box["y"] + box["height"] - 40, steps=4)
        with page.expect_response("**/predict**") as response:
            page.mouse.up()
        (inputs,) = json.loads(response.value.request.post_data)["inputs"]
        answer = response.value.json()
        page.wait_for_selector("#answers tbody tr")
        names = page.locator("#answers tbody tr td:first-child").all_inner_texts()
        labels = page.locator("#answers tbody tr td:nth-child(2)").all_inner_texts()
        page.click("#clear")
        assert page.locator("#answers").is_hidden()
    drawn = np.asarray(inputs)
    assert drawn.shape == SHAPE
    assert drawn[:, 2].max() > 200, "white where it was drawn"
    assert drawn[:, [0, 4]].max() < 50, "black beside"
    assert names == ["window 1..1", "window 1..2"]
    told = [exit["predictions"][0][0]["label"] for exit in answer["exits"]]
    assert labels == [str(label) for label in told]
    assert said == []


def test_a_person_types_and_sees_what_each_exit_says(asked_text, tmp_path, chromium):
    with serving(asked_text, tmp_path) as server, page_of(chromium, server.url) as (page, said):
        page.fill("#text", "The quick brown fo")
        page.wait_for_selector("#answers tbody tr")
        names = page.locator("#answers tbody tr td:first-child").all_inner_texts()
        first = page.locator("#answers tbody tr td:nth-child(2)").first.inner_text()
        page.fill("#text", "")
        page.wait_for_selector("#answers", state="hidden")
        assert said == []
        page.goto(f"{server.url}docs")
        page.wait_for_selector("text=/predict")
    assert names == ["chain 0..0", "chain 0..1"]
    assert re.fullmatch(r'".+"', first)


def test_the_page_tells_of_an_answer_that_is_no_json(server, chromium):
    with page_of(chromium, server.url) as (page, said):
        page.route("**/predict**", lambda route: route.fulfill(status=502, body="Bad Gateway"))
        page.click("#canvas")
        page.wait_for_selector("#error:text-matches('502')")
    assert not [one for one in said if "SyntaxError" in one]


def test_an_answer_to_what_is_no_longer_there_is_not_shown(asked_text, tmp_path, chromium):
    with serving(asked_text, tmp_path) as server, page_of(chromium, server.url) as (page, said):
        page.clock.install()
        asked = []
        page.route("**/predict**", lambda route: asked.append(route))
        with page.expect_request("**/predict**"):
            page.fill("#text", "The quick")
            page.clock.run_for(1000)
        page.fill("#text", "")
        page.clock.run_for(1000)
        with page.expect_response("**/predict**"):
            asked[0].continue_()
        page.evaluate("fetch('healthz').then(one => one.json())")  # the page has seen it by now
        assert page.locator("#answers").is_hidden()
    assert said == []


def test_a_stroke_that_is_taken_from_the_pen_ends(server, chromium):
    """A touch becomes a gesture of the browser: `pointerup` never comes."""
    with page_of(chromium, server.url) as (page, said):
        drawn = "document.getElementById('canvas').toDataURL()"
        box = page.locator("#canvas").bounding_box()
        page.mouse.move(box["x"] + 40, box["y"] + 40)
        page.mouse.down()
        with page.expect_response("**/predict**"):
            page.dispatch_event("#canvas", "pointercancel")
        before = page.evaluate(drawn)
        page.mouse.move(box["x"] + 90, box["y"] + 90)
        assert page.evaluate(drawn) == before
    assert said == []
