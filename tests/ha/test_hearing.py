"""A router that is heard and does not hear: only frames to it are lost."""

from harness.tools import eventually


def test_who_is_heard_but_does_not_hear_is_named_until_it_does(pair):
    a, b, _ = pair()
    said = f"{b.host.address} is heard but does not hear this router"
    b.host.cut("eth0", "to")
    b.await_role("active")
    eventually(lambda: said in a.instance()["misconfigurations"], 10, "one-way hearing is named")
    assert said in a.ctl("status").stdout
    assert a.instance()["role"] == "active"
    b.host.cut("eth0", None)
    b.await_role("backup")
    eventually(lambda: said not in a.instance()["misconfigurations"], 10, "and no more when it is healed")
    assert said not in a.ctl("status").stdout
