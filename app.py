"""The demo in the browser: `make app`, or `python app.py`; `dmkit app --help` has its options."""

from dmkit.app import launch

if __name__ == "__main__":
    launch()
