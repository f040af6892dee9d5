"""What the HA tests share."""

VIP = "10.77.0.100"


def vrrp(priority, interval="100ms", more="", addresses=f'"{VIP}/24"'):
    return (
        f'[vrrp.VI_1]\ninterface = "eth0"\nvirtual_router_id = 51\npriority = {priority}\n'
        f'advertise = "{interval}"\naddresses = [{addresses}]\n{more}\n'
    )


def holds(node, address=VIP):
    return address in node.host.addresses()
