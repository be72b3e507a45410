"""No network: any attempt to open or look up a connection fails the test."""

import socket

import pytest


@pytest.fixture
def no_network(monkeypatch):
    """Every socket call raises and fails the test, even if a library catches the error.

    The hub's offline switch, which the suite sets, is turned off: only the code itself must avoid calls.
    """
    attempts = []

    def refuse(*arguments, **options):
        attempts.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    yield
    assert not attempts
