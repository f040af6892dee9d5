use super::*;
use crate::l4::config::Settings;

fn nic(driver: &str) -> Facts {
    Facts {
        interface: "eth0".into(),
        driver: driver.into(),
        mtu: 1500,
        channels: Some((4, Some(8))),
        features: Some(BASIC),
        cpus: 4,
        directors: 2,
        ..Facts::default()
    }
}

fn need(facts: &Facts, about: &str) -> Need {
    native(facts).into_iter().find(|need| need.about == about).unwrap()
}

#[test]
fn veth_and_lro_are_left_to_the_kernel() {
    let modes = |wanted, facts: &Facts| choose(wanted, facts).modes;
    let lro = Facts { lro: true, ..nic("ixgbe") };
    assert_eq!(modes(Datapath::Auto, &nic("veth")), [Mode::Generic]);
    assert_eq!(modes(Datapath::Xdp, &lro), [Mode::Generic]);
    assert_eq!(modes(Datapath::Auto, &nic("ixgbe")), [Mode::Native, Mode::Generic]);
    assert_eq!(modes(Datapath::Packet, &nic("ixgbe")), []);
    assert_eq!(modes(Datapath::Native, &nic("veth")), [Mode::Native]);
    // The reason is the need's own words.
    assert_eq!(choose(Datapath::Auto, &lro).why, need(&lro, "lro").says);
    assert!(need(&lro, "lro").says.ends_with("ethtool -K eth0 lro off"));
}

#[test]
fn a_card_that_has_everything_lacks_nothing() {
    for driver in ["ixgbe", "ena", "virtio_net"] {
        assert_eq!(lacks(&nic(driver)), None, "{driver}");
        assert_eq!(choose(Datapath::Native, &nic(driver)).why, "as configured");
    }
}

#[test]
fn each_need_is_told_with_its_remedy() {
    let table = [
        (Facts { mtu: 9000, ..nic("ice") }, "mtu", "ip link set eth0 mtu 3498"),
        (Facts { features: Some(0), ..nic("e1000e") }, "driver", "generic mode runs it"),
        (Facts { channels: Some((5, Some(8))), ..nic("ena") }, "channels", "-L eth0 combined 4"),
        (Facts { channels: Some((8, Some(8))), ..nic("virtio_net") }, "channels", "under a lock"),
        (Facts { channels: Some((1, None)), ..nic("ice") }, "channels", "of 2 that forward"),
    ];
    for (facts, about, remedy) in table {
        let need = need(&facts, about);
        assert_eq!(need.met, Some(false), "{need:?}");
        assert!(need.says.contains(remedy), "{need:?}");
        assert!(lacks(&facts).is_some_and(|lacks| lacks.contains(remedy)));
    }
    assert_eq!(need(&Facts { mtu: MTU_MAX, ..nic("ice") }, "mtu").met, Some(true));
    assert_eq!(need(&Facts { features: None, ..nic("ice") }, "driver").met, None);
}

#[test]
fn veth_needs_its_other_end_and_its_clients() {
    let with = |other_end| Facts { other_end, ..nic("veth") };
    let end = |program| Some(OtherEnd { name: "p1".into(), program });
    assert_eq!(need(&with(None), "other end").met, None);
    assert_eq!(need(&with(end(false)), "other end").met, Some(false));
    assert_eq!(need(&with(end(true)), "other end").met, Some(true));
    assert_eq!(need(&with(end(true)), "checksums").met, None);
    // Whoever insists is told.
    let told = choose(Datapath::Native, &with(end(false))).why;
    assert!(told.contains("p1") && told.contains("tx off"), "{told}");
}

#[test]
fn the_loopback_is_looked_at() {
    let facts = Facts::read("lo", &Settings::default());
    assert!(facts.mtu >= 1500 && facts.driver.is_empty() && !facts.lro, "{facts:?}");
    let nothing = Facts::read("no-such-thing", &Settings::default());
    assert_eq!((nothing.mtu, nothing.features), (0, None));
}
