"""The marker `no_cover` of pytest-cov, also in the workers of pytest-xdist."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    """Stop the measurement that pytest-cov starts while a worker of xdist reads its options.

    It starts a second one within it. Where `no_cover` stops that one, the first would go on.
    """
    plugin = session.config.pluginmanager.getplugin("_cov")
    if hasattr(session.config, "workerinput") and plugin is not None and plugin.cov_controller:
        plugin.cov_controller.cov.stop()
