"""The folder for a Space of Hugging Face: its app serves the page, its settings fit ours."""

import re
import sys
import urllib.request
from pathlib import Path

import gradio
import yaml

from helpers.extras import all_extras
from helpers.served_app import served_command
from setokim.explorer.layout import TITLE

FOLDER = Path(__file__).parents[3] / "examples/space"


def test_the_app_serves_the_page():
    with served_command([sys.executable, str(FOLDER / "app.py")]) as served:
        text = urllib.request.urlopen(served.url, timeout=20).read().decode()
    assert f'"title":"{TITLE}"' in text


def test_the_settings_name_what_is_there():
    head = yaml.safe_load((FOLDER / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert head["sdk"] == "gradio" and (FOLDER / head["app_file"]).is_file()
    assert head["sdk_version"] == gradio.__version__
    [line] = (FOLDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    extras = re.search(r"\[(.+?)\]", line)[1].split(",")
    assert set(extras) <= set(all_extras())
