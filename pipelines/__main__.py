"""Entry point of the `pipelines` command (also ``python -m pipelines``)."""

from __future__ import annotations

from pipelines._guard import check


def main() -> None:
    check()
    from pipelines.cli import main as run

    run()


if __name__ == "__main__":
    main()
