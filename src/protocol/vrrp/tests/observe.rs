//! What other routers' advertisements show.

use super::*;

const INTERVAL: Interval = Interval::TENTH;

/// Hears one advertisement as an observer does.
fn hear(
    observer: &mut Observer,
    ms: u64,
    (from, path): (u8, u8),
    priority: u8,
    interval: Interval,
    addresses: &[u8],
    state: State,
) {
    let list = addresses.iter().map(|last| address(*last)).collect();
    let mut sender = Sender::new(Version::V3, 51, interval, list, Auth::None).unwrap();
    let (mut payload, destination) = (Vec::new(), MULTICAST_V4.into());
    let source = address(from);
    sender.build(&mut payload, priority, source, destination, Form::Pseudo, Duration::ZERO);
    let datagram = Datagram { source, destination, hop_limit: 255, payload: &payload };
    let packet = Packet::parse(&datagram).unwrap();
    let mut receiver = Receiver::new(Accepts {
        version: Version::V3,
        vrid: 51,
        interval,
        hop_limit: HopLimit::Link,
        peers: Vec::new(),
        both_methods: false,
        auth: Auth::None,
        checksum: ChecksumPolicy::Auto,
    });
    let advert = receiver.judge(&datagram, &packet, false, Duration::ZERO).unwrap();
    let own = Own { state, interval: INTERVAL, addresses: &[address(100), address(101)] };
    observer.accepted(at(ms), Path(path), &advert, &own);
}

#[test]
fn nothing_is_wrong_with_an_equal_peer() {
    let mut observer = Observer::new();
    hear(&mut observer, 0, (60, 0), 200, INTERVAL, &[101, 100], State::Backup);
    hear(&mut observer, 100, (60, 0), 200, INTERVAL, &[101, 100], State::Backup);
    assert_eq!(observer.findings(at(150)), []);
    let peer = observer.peers(at(150)).next().unwrap();
    assert_eq!((peer.source, peer.priority, peer.accepted), (address(60), 200, 2));
    assert_eq!((peer.form, peer.at), (Form::Pseudo, at(100)));
    assert_eq!(observer.peers(at(700_000)).count(), 0);
}

#[test]
fn differing_lists_and_intervals() {
    let mut observer = Observer::new();
    let second = Interval::SECOND;
    hear(&mut observer, 0, (60, 0), 200, second, &[100], State::Backup);
    let peer = address(60);
    let expected = [
        Finding::AddressesDiffer { peer },
        Finding::IntervalsDiffer { peer, interval: Some(second) },
    ];
    assert_eq!(observer.findings(at(10)), expected);
    assert_eq!(observer.findings(at(600_000)), []);
    hear(&mut observer, 700_000, (60, 0), 200, INTERVAL, &[100, 101], State::Backup);
    assert_eq!(observer.findings(at(700_000)), []);
}

#[test]
fn both_active_and_one_way() {
    let (mut observer, peer) = (Observer::new(), address(60));
    let inferior = |observer: &mut Observer, ms| {
        hear(observer, ms, (60, 0), 50, INTERVAL, &[100, 101], State::Active);
    };
    inferior(&mut observer, 0);
    inferior(&mut observer, 100);
    assert_eq!(observer.findings(at(100)), [Finding::BothActive { peer }]);
    inferior(&mut observer, 200);
    assert_eq!(observer.findings(at(200)), [Finding::OneWay { peer }]);
    // Over since a second.
    assert_eq!(observer.findings(at(1_200)), []);
    // Stepping down ends it.
    inferior(&mut observer, 2_000);
    hear(&mut observer, 2_100, (60, 0), 0, INTERVAL, &[100, 101], State::Active);
    inferior(&mut observer, 2_200);
    assert_eq!(observer.findings(at(2_200)), [Finding::BothActive { peer }]);
}

#[test]
fn a_cut_primary_path_is_named() {
    let mut observer = Observer::new();
    hear(&mut observer, 0, (60, 0), 200, INTERVAL, &[100, 101], State::Backup);
    hear(&mut observer, 0, (9, 1), 200, INTERVAL, &[100, 101], State::Backup);
    assert_eq!(observer.findings(at(500)), []);
    hear(&mut observer, 1_500, (9, 1), 200, INTERVAL, &[100, 101], State::Backup);
    assert_eq!(observer.findings(at(1_500)), [Finding::PrimaryCut { peer: address(9) }]);
}

#[test]
fn strangers_are_named_with_the_reason() {
    let (mut observer, peer) = (Observer::new(), address(60));
    observer.refused(at(0), peer, Error::Own);
    observer.refused(at(0), peer, Error::Vrid);
    assert_eq!(observer.findings(at(0)), []);
    observer.refused(at(0), peer, Error::Password);
    observer.refused(at(1), peer, Error::Password);
    assert_eq!(observer.findings(at(1)), [Finding::Stranger { peer, error: Error::Password }]);
    assert_eq!(observer.strangers(at(1)).next().unwrap().dropped, 2);
    observer.refused(at(2), peer, Error::IntervalMismatch);
    assert_eq!(observer.findings(at(2)), [Finding::IntervalsDiffer { peer, interval: None }]);
    // Accepted after all.
    hear(&mut observer, 3, (60, 0), 200, INTERVAL, &[100, 101], State::Backup);
    assert_eq!(observer.findings(at(3)), []);
}

#[test]
fn tables_are_bounded_and_strangers_displace_no_peer() {
    let mut observer = Observer::new();
    hear(&mut observer, 0, (250, 0), 200, INTERVAL, &[100, 101], State::Backup);
    for last in 0..=200 {
        observer.refused(at(u64::from(last)), address(last), Error::Checksum);
    }
    assert_eq!(observer.strangers(at(300)).count(), 16);
    assert_eq!(observer.peers(at(300)).count(), 1);
    for last in 0..=200 {
        let ms = 300 + u64::from(last);
        hear(&mut observer, ms, (last, 0), 200, INTERVAL, &[100, 101], State::Backup);
    }
    assert_eq!(observer.peers(at(600)).count(), 16);
    assert!(observer.peers(at(600)).all(|peer| peer.at >= at(485)));
}
