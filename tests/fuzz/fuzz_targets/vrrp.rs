//! VRRP: nothing panics, and an advertisement that is accepted can be built again from its fields
//! and is accepted again with the same meaning.

#![no_main]

use std::net::IpAddr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use ringgate::protocol::checksum::Sum;
use ringgate::protocol::vrrp::{
    Accepts, Auth, ChecksumPolicy, Datagram, Family, Form, HmacKey, HmacMode, HopLimit, Interval,
    Kind, Packet, Password, Receiver, Sender, Version,
};

const NOW: Duration = Duration::from_secs(0x6800_0000);

/// The first byte chooses what is configured, so that all branches are near.
fn auth(choice: u8) -> (Version, Auth) {
    match choice & 3 {
        0 => (Version::V2, Auth::None),
        1 => (Version::V2, Auth::Pass(Password::new(b"1111").expect("short"))),
        2 => (Version::V3, Auth::None),
        _ => {
            let key = HmacKey::new(1, &[7; 32]).expect("32 bytes");
            (Version::V3, Auth::Hmac { mode: HmacMode::Permissive, keys: vec![key] })
        }
    }
}

fn check(version: Version, auth: Auth, datagram: &Datagram<'_>) {
    let Ok(packet) = Packet::parse(datagram) else { return };
    let accepts = Accepts {
        version,
        vrid: packet.vrid,
        interval: if version == Version::V2 { packet.interval } else { Interval::SECOND },
        hop_limit: HopLimit::Range(0..=255),
        peers: Vec::new(),
        both_methods: false,
        auth: auth.clone(),
        checksum: ChecksumPolicy::Auto,
    };
    if let Kind::Signal(_) = packet.kind {
        return check_signal(accepts, datagram, &packet);
    }
    let Ok(advert) = Receiver::new(accepts.clone()).judge(datagram, &packet, false, NOW) else {
        return;
    };
    let addresses: Vec<IpAddr> = advert.addresses.iter().collect();
    assert!(advert.addresses.same_as(&addresses) && !addresses.is_empty());
    let mut sender = Sender::new(version, packet.vrid, advert.interval, addresses.clone(), auth)
        .expect("what was received can be sent");
    let mut out = Vec::new();
    let (source, destination) = (datagram.source, datagram.destination);
    sender.build(&mut out, advert.priority, source, destination, advert.form, NOW);
    let again = Datagram { payload: &out, ..*datagram };
    let packet = Packet::parse(&again).expect("built well");
    let rebuilt =
        Receiver::new(accepts).judge(&again, &packet, false, NOW).expect("built as configured");
    assert_eq!(rebuilt.priority, advert.priority);
    assert_eq!(rebuilt.interval, advert.interval);
    assert!(rebuilt.addresses.iter().eq(addresses));
}

/// A message of our own is never an advertisement, and can be built again as well.
fn check_signal(accepts: Accepts, datagram: &Datagram<'_>, packet: &Packet<'_>) {
    assert!(Receiver::new(accepts.clone()).judge(datagram, packet, false, NOW).is_err());
    let mut receiver = Receiver::new(accepts.clone());
    let Ok(signal) = receiver.judge_signal(datagram, packet, false, NOW) else { return };
    let Accepts { version, vrid, auth, .. } = accepts.clone();
    let addresses: Vec<IpAddr> = packet.addresses.iter().collect();
    let mut sender = Sender::new(version, vrid, packet.interval, addresses, auth)
        .expect("what was received can be sent");
    let (source, destination) = (datagram.source, datagram.destination);
    let mut out = Vec::new();
    sender.build_signal(&mut out, signal, source, destination, Form::Message, NOW);
    let again = Datagram { payload: &out, ..*datagram };
    let packet = Packet::parse(&again).expect("built well");
    let rebuilt = Receiver::new(accepts).judge_signal(&again, &packet, false, NOW);
    assert_eq!(rebuilt, Ok(signal));
}

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    let (version, auth) = auth(*choice);
    if let Ok(datagram) = Datagram::from_ipv4(bytes) {
        check(version, auth.clone(), &datagram);
    }
    let source: IpAddr =
        if choice & 4 == 0 { [192, 0, 2, 2].into() } else { [0xfe80, 0, 0, 0, 0, 0, 0, 2].into() };
    // Advertisements are multicast here, messages of our own unicast.
    let ours = bytes.first().is_some_and(|kind| kind & 0x0f >= 13);
    let destination = if ours { source } else { Family::of(source).multicast() };
    let datagram = Datagram { source, destination, hop_limit: 255, payload: bytes };
    check(version, auth.clone(), &datagram);
    // With its checksum put right, so that more gets through.
    if bytes.len() >= 8 && choice & 8 != 0 && source.is_ipv4() {
        let mut payload = bytes.to_vec();
        payload[6..8].fill(0);
        let sum = Sum::new().bytes(&payload).finish();
        payload[6..8].copy_from_slice(&sum.to_be_bytes());
        check(version, auth, &Datagram { payload: &payload, ..datagram });
    }
});
