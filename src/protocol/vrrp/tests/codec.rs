//! Building and judging advertisements.

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::super::*;

const NOW: Duration = Duration::from_secs(0x6800_0000);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn accepts(version: Version, auth: Auth) -> Accepts {
    Accepts {
        version,
        vrid: 51,
        interval: Interval::SECOND,
        hop_limit: HopLimit::Link,
        peers: Vec::new(),
        both_methods: false,
        auth,
        checksum: ChecksumPolicy::Auto,
    }
}

fn multicast<'a>(source: &str, payload: &'a [u8]) -> Datagram<'a> {
    let source = ip(source);
    let destination = Family::of(source).multicast();
    Datagram { source, destination, hop_limit: 255, payload }
}

/// Parses and judges.
fn judge<'a>(receiver: &mut Receiver, datagram: &Datagram<'a>) -> Result<Advert<'a>, Error> {
    let packet = Packet::parse(datagram)?;
    let own = [(1, ip("192.0.2.1")), (1, ip("fe80::1"))];
    receiver.judge(datagram, &packet, is_own(&own, 1, datagram.source), NOW)
}

fn sender(version: Version, addresses: &[&str], auth: Auth) -> Sender {
    let addresses = addresses.iter().map(|text| ip(text)).collect();
    Sender::new(version, 51, Interval::SECOND, addresses, auth).unwrap()
}

fn build(sender: &mut Sender, priority: u8, source: &str, form: Form) -> Vec<u8> {
    let source = ip(source);
    let mut out = vec![0xaa; 3];
    sender.build(&mut out, priority, source, Family::of(source).multicast(), form, NOW);
    out
}

fn keys() -> Vec<HmacKey> {
    let secret: Vec<u8> = (0..32).collect();
    vec![HmacKey::new(1, &secret).unwrap()]
}

fn hmac(mode: HmacMode) -> Auth {
    Auth::Hmac { mode, keys: keys() }
}

fn password(text: &str) -> Auth {
    Auth::Pass(Password::new(text.as_bytes()).unwrap())
}

/// The vectors that keepalived publishes with its implementation of the draft.
const HMAC_V4: &str = "3133c801 00644402 c0000264
    0101 0000 6800000080000000 1b84bc4e8e43892dc6d98448f8ee2265";
const HMAC_V6: &str = "3133c801 0064a2e9 fe800000000000000000000000000100
    0101 0000 6800000080000000 c8c56146ebfd66ee10ec4d8186461b78";

#[test]
fn hmac_vectors_are_built() {
    // Half a second is 8000 in 1/65536 s.
    let unix = NOW + Duration::from_millis(500);
    let mut out = Vec::new();
    let mut v4 = Sender::new(
        Version::V3,
        51,
        Interval::SECOND,
        vec![ip("192.0.2.100")],
        hmac(HmacMode::Enforce),
    )
    .unwrap();
    v4.build(&mut out, 200, ip("198.51.100.10"), ip("224.0.0.18"), Form::Message, unix);
    assert_eq!(out, hex(HMAC_V4));

    let mut v6 = Sender::new(
        Version::V3,
        51,
        Interval::SECOND,
        vec![ip("fe80::100")],
        hmac(HmacMode::Permissive),
    )
    .unwrap();
    v6.build(&mut out, 200, ip("fe80::10"), ip("fe80::20"), Form::Message, unix);
    assert_eq!(out, hex(HMAC_V6));
}

#[test]
fn hmac_vectors_are_accepted_once() {
    let bytes = hex(HMAC_V4);
    let mut receiver = Receiver::new(accepts(Version::V3, hmac(HmacMode::Enforce)));
    let datagram = multicast("198.51.100.10", &bytes);
    let advert = judge(&mut receiver, &datagram).unwrap();
    assert!(advert.authenticated);
    assert_eq!((advert.priority, advert.form), (200, Form::Message));
    assert!(advert.addresses.same_as(&[ip("192.0.2.100")]));
    assert_eq!(judge(&mut receiver, &datagram).unwrap_err(), Error::Replay);

    let bytes = hex(HMAC_V6);
    let mut accepts = accepts(Version::V3, hmac(HmacMode::Enforce));
    accepts.peers = vec![ip("fe80::10")];
    let mut receiver = Receiver::new(accepts);
    let datagram = Datagram { destination: ip("fe80::20"), ..multicast("fe80::10", &bytes) };
    assert!(judge(&mut receiver, &datagram).unwrap().authenticated);
    assert_eq!(judge(&mut receiver, &datagram).unwrap_err(), Error::Replay);
}

#[test]
fn every_flipped_bit_under_the_hmac_is_noticed() {
    let bytes = hex(HMAC_V4);
    for bit in 0..bytes.len() * 8 {
        let mut wrong = bytes.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        let mut receiver = Receiver::new(accepts(Version::V3, hmac(HmacMode::Enforce)));
        assert!(judge(&mut receiver, &multicast("198.51.100.10", &wrong)).is_err(), "bit {bit}");
        // The failed attempt moved no replay slot and taught no form.
        let right = multicast("198.51.100.10", &bytes);
        assert_eq!(receiver.learned(ip("198.51.100.10")), None);
        assert!(judge(&mut receiver, &right).is_ok(), "bit {bit}");
    }
}

#[test]
fn hmac_modes() {
    let bare = build(
        &mut sender(Version::V3, &["192.0.2.100"], Auth::None),
        100,
        "192.0.2.2",
        Form::Message,
    );
    let modes = [
        (HmacMode::ReceiveOnly, Ok(false), 0),
        (HmacMode::Permissive, Ok(false), HMAC_TRAILER),
        (HmacMode::Enforce, Err(Error::HmacMissing), HMAC_TRAILER),
    ];
    for (mode, bare_outcome, trailer) in modes {
        let mut receiver = Receiver::new(accepts(Version::V3, hmac(mode)));
        let outcome = judge(&mut receiver, &multicast("192.0.2.2", &bare));
        assert_eq!(outcome.map(|advert| advert.authenticated), bare_outcome);
        // A wrong trailer is refused in every mode.
        let mut wrong = hex(HMAC_V4);
        *wrong.last_mut().unwrap() ^= 1;
        let outcome = judge(&mut receiver, &multicast("198.51.100.10", &wrong));
        assert_eq!(outcome.unwrap_err(), Error::Hmac);
        let sent = build(
            &mut sender(Version::V3, &["192.0.2.100"], hmac(mode)),
            1,
            "192.0.2.2",
            Form::Message,
        );
        assert_eq!(sent.len(), 12 + trailer);
    }
    // Without keys a trailer is passed over, as keepalived before 2.4 does.
    let mut receiver = Receiver::new(accepts(Version::V3, Auth::None));
    let bytes = hex(HMAC_V4);
    assert!(!judge(&mut receiver, &multicast("198.51.100.10", &bytes)).unwrap().authenticated);
}

#[test]
fn hmac_window_and_order() {
    let auth = || hmac(HmacMode::Enforce);
    let mut sender = sender(Version::V3, &["192.0.2.100"], auth());
    let at = |sender: &mut Sender, unix: Duration| {
        let mut out = Vec::new();
        sender.build(&mut out, 9, ip("192.0.2.2"), MULTICAST_V4.into(), Form::Message, unix);
        out
    };
    let mut receiver = Receiver::new(accepts(Version::V3, auth()));
    let mut outcome = |bytes: &[u8]| judge(&mut receiver, &multicast("192.0.2.2", bytes)).err();
    let old = at(&mut sender, NOW - Duration::from_millis(5_500));
    let first = at(&mut sender, NOW - Duration::from_secs(4));
    let second = at(&mut sender, NOW);
    // The clock went back: the sequence goes on all the same.
    let third = at(&mut sender, NOW - Duration::from_secs(60));
    assert_eq!(outcome(&old), Some(Error::Replay));
    assert_eq!(outcome(&first), None);
    assert_eq!(outcome(&third), None);
    assert_eq!(outcome(&second), Some(Error::Replay));
    let ahead = at(&mut sender, NOW + Duration::from_millis(5_500));
    assert_eq!(outcome(&ahead), Some(Error::Replay));
}

#[test]
fn hmac_keys_by_id() {
    assert!(HmacKey::new(1, &[0; 31]).is_none());
    assert!(HmacKey::new(1, &[0; 65]).is_none());
    let other = HmacKey::new(2, &[7; 64]).unwrap();
    let new_first = Auth::Hmac { mode: HmacMode::Enforce, keys: vec![other, keys().remove(0)] };
    let mut roll = sender(Version::V3, &["192.0.2.100"], new_first.clone());
    let bytes = build(&mut roll, 100, "192.0.2.2", Form::Message);
    let mut knows_both = Receiver::new(accepts(Version::V3, new_first));
    assert!(judge(&mut knows_both, &multicast("192.0.2.2", &bytes)).is_ok());
    let old = hex(HMAC_V4);
    assert!(judge(&mut knows_both, &multicast("198.51.100.10", &old)).is_ok());
    let mut knows_old = Receiver::new(accepts(Version::V3, hmac(HmacMode::Enforce)));
    let outcome = judge(&mut knows_old, &multicast("192.0.2.2", &bytes));
    assert_eq!(outcome.unwrap_err(), Error::HmacKey);
}

#[test]
fn replay_slots_are_bounded_and_least_recent_goes() {
    let auth = || hmac(HmacMode::Enforce);
    let mut receiver = Receiver::new(accepts(Version::V3, auth()));
    let from = |last: usize| format!("192.0.2.{}", last + 10);
    let packets: Vec<Vec<u8>> = (0..9)
        .map(|n| {
            build(&mut sender(Version::V3, &["192.0.2.100"], auth()), 1, &from(n), Form::Message)
        })
        .collect();
    for (n, packet) in packets[..8].iter().enumerate() {
        assert!(judge(&mut receiver, &multicast(&from(n), packet)).is_ok());
    }
    for (n, packet) in packets[..8].iter().enumerate() {
        let outcome = judge(&mut receiver, &multicast(&from(n), packet));
        assert_eq!(outcome.unwrap_err(), Error::Replay);
    }
    assert!(judge(&mut receiver, &multicast(&from(8), &packets[8])).is_ok());
    let second = judge(&mut receiver, &multicast(&from(1), &packets[1]));
    assert_eq!(second.unwrap_err(), Error::Replay);
}

#[test]
fn version_2_on_the_wire() {
    // VRID 51, priority 101, one address, PASS, one second; the checksum is summed anew below.
    let mut v2 = sender(Version::V2, &["192.168.1.100"], password("1111"));
    let bytes = build(&mut v2, 101, "192.168.1.2", Form::Pseudo);
    let expected = hex("21336501 0101 0000 c0a80164 3131313100000000");
    let sum = expected
        .chunks(2)
        .enumerate()
        .filter(|(word, _)| *word != 3)
        .fold(0_u32, |sum, (_, w)| sum + u32::from(u16::from_be_bytes([w[0], w[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    assert_eq!(bytes[..6], expected[..6]);
    assert_eq!(bytes[8..], expected[8..]);
    assert_eq!(u32::from(u16::from_be_bytes([bytes[6], bytes[7]])), 0xffff - folded);

    let mut receiver = Receiver::new(accepts(Version::V2, password("1111")));
    let advert = judge(&mut receiver, &multicast("192.168.1.2", &bytes)).unwrap();
    assert_eq!(
        (advert.priority, advert.interval, advert.form),
        (101, Interval::SECOND, Form::Message)
    );

    let cases = [
        (password("1112"), Interval::SECOND, Error::Password),
        (Auth::None, Interval::SECOND, Error::AuthType),
        (password("1111"), Interval::from_seconds(2).unwrap(), Error::IntervalMismatch),
    ];
    for (auth, interval, error) in cases {
        let mut receiver = Receiver::new(Accepts { interval, ..accepts(Version::V2, auth) });
        assert_eq!(judge(&mut receiver, &multicast("192.168.1.2", &bytes)).unwrap_err(), error);
    }
    let bare = build(
        &mut sender(Version::V2, &["192.168.1.100"], Auth::None),
        101,
        "192.168.1.2",
        Form::Message,
    );
    assert_eq!(bare.len(), 20);
    let mut receiver = Receiver::new(accepts(Version::V2, password("1111")));
    assert_eq!(
        judge(&mut receiver, &multicast("192.168.1.2", &bare)).unwrap_err(),
        Error::AuthType
    );
    let mut receiver = Receiver::new(accepts(Version::V2, Auth::None));
    assert!(judge(&mut receiver, &multicast("192.168.1.2", &bare)).is_ok());
}

#[test]
fn passwords_are_at_most_eight_bytes() {
    assert!(Password::new(b"12345678").is_some());
    assert!(Password::new(b"123456789").is_none());
    assert!(Password::new(b"").is_none());
    assert_eq!(format!("{:?}", Password::new(b"secret")), "Some(Password(..))");
}

#[test]
fn both_checksum_forms_are_learned_per_peer() {
    let mut v3 = sender(Version::V3, &["192.0.2.100"], Auth::None);
    let mut receiver = Receiver::new(accepts(Version::V3, Auth::None));
    let all: IpAddr = MULTICAST_V4.into();
    let forms = |receiver: &Receiver, to| receiver.forms_for(to).iter().collect::<Vec<_>>();
    assert_eq!(forms(&receiver, all), [Form::Message]);
    let strangers =
        |receiver: &Receiver, to| receiver.forms_for_strangers(to).iter().collect::<Vec<_>>();
    assert_eq!(strangers(&receiver, all), [Form::Pseudo, Form::Message]);
    assert_eq!(strangers(&receiver, ip("192.0.2.4")), [Form::PseudoMulticast, Form::Message]);

    let plain = build(&mut v3, 100, "192.0.2.2", Form::Message);
    let pseudo = build(&mut v3, 100, "192.0.2.3", Form::Pseudo);
    assert_ne!(plain[6..8], pseudo[6..8]);
    let advert = judge(&mut receiver, &multicast("192.0.2.3", &pseudo)).unwrap();
    assert_eq!(advert.form, Form::Pseudo);
    assert_eq!(forms(&receiver, all), [Form::Pseudo]);
    assert_eq!(strangers(&receiver, all), [Form::Pseudo], "no strangers any more");
    assert!(judge(&mut receiver, &multicast("192.0.2.2", &plain)).is_ok());
    assert_eq!(forms(&receiver, all), [Form::Message, Form::Pseudo]);
    assert_eq!(forms(&receiver, ip("192.0.2.2")), [Form::Message]);
    assert_eq!(forms(&receiver, ip("192.0.2.3")), [Form::Pseudo]);
    assert_eq!(forms(&receiver, ip("192.0.2.4")), [Form::Message]);

    // A peer that changes is followed.
    let changed = build(&mut v3, 100, "192.0.2.3", Form::Message);
    assert!(judge(&mut receiver, &multicast("192.0.2.3", &changed)).is_ok());
    assert_eq!(forms(&receiver, all), [Form::Message]);

    for (checksum, right, wrong) in
        [(ChecksumPolicy::Rfc9568, &plain, &pseudo), (ChecksumPolicy::Pseudo, &pseudo, &plain)]
    {
        let rules = Accepts { checksum, ..accepts(Version::V3, Auth::None) };
        let mut strict = Receiver::new(rules);
        assert_eq!(strangers(&strict, all), forms(&strict, all), "as configured");
        let from = if checksum == ChecksumPolicy::Pseudo { "192.0.2.3" } else { "192.0.2.2" };
        let other = if checksum == ChecksumPolicy::Pseudo { "192.0.2.2" } else { "192.0.2.3" };
        assert!(judge(&mut strict, &multicast(from, right)).is_ok());
        let outcome = judge(&mut strict, &multicast(other, wrong));
        assert_eq!(outcome.unwrap_err(), Error::Checksum);
    }
}

#[test]
fn old_keepalived_unicast_form() {
    let mut v3 = sender(Version::V3, &["192.0.2.100"], Auth::None);
    let bytes = build(&mut v3, 100, "192.0.2.2", Form::Pseudo);
    let rules = Accepts { peers: vec![ip("192.0.2.2")], ..accepts(Version::V3, Auth::None) };
    let mut receiver = Receiver::new(rules);
    let unicast = Datagram { destination: ip("192.0.2.1"), ..multicast("192.0.2.2", &bytes) };
    assert_eq!(judge(&mut receiver, &unicast).unwrap().form, Form::PseudoMulticast);
    assert_eq!(receiver.forms_for(ip("192.0.2.2")).iter().next(), Some(Form::PseudoMulticast));
}

#[test]
fn forms_remembered_are_bounded() {
    let mut v3 = sender(Version::V3, &["192.0.2.100"], Auth::None);
    let mut receiver = Receiver::new(accepts(Version::V3, Auth::None));
    for last in 2..=18 {
        let from = format!("192.0.2.{last}");
        let bytes = build(&mut v3, 100, &from, Form::Pseudo);
        assert!(judge(&mut receiver, &multicast(&from, &bytes)).is_ok());
    }
    assert_eq!(receiver.learned(ip("192.0.2.2")), None);
    assert_eq!(receiver.learned(ip("192.0.2.3")), Some(Form::Pseudo));
}

#[test]
fn every_check_has_its_error() {
    let v3 = build(
        &mut sender(Version::V3, &["192.0.2.100"], Auth::None),
        100,
        "192.0.2.2",
        Form::Message,
    );
    let base = multicast("192.0.2.2", &v3);
    let change = |at: usize, value: u8| {
        let mut bytes = v3.clone();
        bytes[at] = value;
        bytes
    };
    let mut long = v3.clone();
    long.push(0);
    let longer: Vec<u8> = v3.iter().copied().chain([0; 27]).collect();
    let payloads = [
        (change(0, 0x11), Error::Version),
        (change(0, 0x41), Error::Version),
        (change(0, 0x32), Error::Type),
        (change(0, 0x21), Error::Length),
        (change(1, 52), Error::Vrid),
        (change(2, 101), Error::Checksum),
        (change(3, 0), Error::Length),
        (change(3, 2), Error::Length),
        (change(5, 0), Error::Interval),
        (long, Error::Length),
        (longer, Error::Length),
        (vec![0x31, 51, 1, 0, 0, 100, 0, 0], Error::AddressList),
    ];
    for (payload, error) in &payloads {
        let mut receiver = Receiver::new(accepts(Version::V3, Auth::None));
        let outcome = judge(&mut receiver, &Datagram { payload, ..base });
        assert_eq!(outcome.unwrap_err(), *error, "{payload:02x?}");
    }
    let headers = [
        (Datagram { hop_limit: 254, ..base }, Error::HopLimit),
        (Datagram { source: ip("192.0.2.1"), ..base }, Error::Own),
        (Datagram { source: ip("0.0.0.0"), ..base }, Error::Source),
        (Datagram { source: ip("224.0.0.1"), ..base }, Error::Source),
        (Datagram { source: ip("127.0.0.1"), ..base }, Error::Source),
        (Datagram { destination: ip("224.0.0.1"), ..base }, Error::Destination),
        (Datagram { destination: ip("192.0.2.1"), ..base }, Error::Destination),
    ];
    for (datagram, error) in headers {
        let mut receiver = Receiver::new(accepts(Version::V3, Auth::None));
        assert_eq!(judge(&mut receiver, &datagram).unwrap_err(), error, "{datagram:?}");
    }
    let mut other = Receiver::new(accepts(Version::V2, Auth::None));
    assert_eq!(judge(&mut other, &base).unwrap_err(), Error::OtherVersion);
}

#[test]
fn unicast_is_judged_by_its_peers() {
    let v3 = build(
        &mut sender(Version::V3, &["192.0.2.100"], Auth::None),
        100,
        "192.0.2.2",
        Form::Message,
    );
    let by_multicast = multicast("192.0.2.2", &v3);
    let by_unicast = Datagram { destination: ip("192.0.2.1"), ..by_multicast };
    let rules = Accepts { peers: vec![ip("192.0.2.2")], ..accepts(Version::V3, Auth::None) };

    let mut link = Receiver::new(rules.clone());
    assert!(judge(&mut link, &by_unicast).is_ok());
    assert_eq!(judge(&mut link, &by_multicast).unwrap_err(), Error::Destination);
    let stranger = Datagram { source: ip("192.0.2.3"), ..by_unicast };
    assert_eq!(judge(&mut link, &stranger).unwrap_err(), Error::Source);
    let far = Datagram { hop_limit: 60, ..by_unicast };
    assert_eq!(judge(&mut link, &far).unwrap_err(), Error::HopLimit);

    let routed = Accepts { hop_limit: HopLimit::Range(60..=64), both_methods: true, ..rules };
    let mut routed = Receiver::new(routed);
    assert!(judge(&mut routed, &far).is_ok());
    assert_eq!(judge(&mut routed, &by_unicast).unwrap_err(), Error::HopLimit);
    assert!(judge(&mut routed, &by_multicast).is_ok());
    assert_eq!(
        judge(&mut routed, &Datagram { hop_limit: 60, ..by_multicast }).unwrap_err(),
        Error::HopLimit
    );
}

#[test]
fn ipv4_headers() {
    let payload = build(
        &mut sender(Version::V3, &["192.0.2.100"], Auth::None),
        100,
        "192.0.2.2",
        Form::Message,
    );
    let mut packet = hex("45c00020 00000000 ff700000 c0000202 e0000012");
    packet.extend_from_slice(&payload);
    // An Ethernet frame is padded to 60 bytes; the total length says where the packet ends.
    packet.extend_from_slice(&[0; 14]);
    let datagram = Datagram::from_ipv4(&packet).unwrap();
    assert_eq!(datagram.payload, payload);
    assert_eq!((datagram.source, datagram.destination), (ip("192.0.2.2"), MULTICAST_V4.into()));
    assert_eq!(datagram.hop_limit, 255);
    assert!(judge(&mut Receiver::new(accepts(Version::V3, Auth::None)), &datagram).is_ok());

    let mut options = packet.clone();
    options[0] = 0x46;
    options[3] += 4;
    options.splice(20..20, [1, 1, 1, 0]);
    assert_eq!(Datagram::from_ipv4(&options).unwrap().payload, payload);

    for cut in 0..32 {
        assert_eq!(Datagram::from_ipv4(&packet[..cut]).unwrap_err(), Error::IpHeader);
    }
    for (at, value) in
        [(0, 0x65), (0, 0x44), (0, 0x4f), (3, 19), (3, 0xff), (6, 0x20), (7, 1), (9, 17)]
    {
        let mut wrong = packet.clone();
        wrong[at] = value;
        assert_eq!(Datagram::from_ipv4(&wrong).unwrap_err(), Error::IpHeader, "{at}");
    }
}

#[test]
fn senders_that_could_not_be_heard_are_refused() {
    let new = |version, addresses: &[&str], auth| {
        let addresses = addresses.iter().map(|text| ip(text)).collect();
        Sender::new(version, 1, Interval::SECOND, addresses, auth)
    };
    assert!(new(Version::V3, &[], Auth::None).is_none());
    assert!(new(Version::V3, &["192.0.2.1", "fe80::1"], Auth::None).is_none());
    assert!(new(Version::V2, &["fe80::1"], Auth::None).is_none());
    assert!(new(Version::V3, &["192.0.2.1"], password("x")).is_none());
    assert!(new(Version::V2, &["192.0.2.1"], hmac(HmacMode::Enforce)).is_none());
    let none = Auth::Hmac { mode: HmacMode::Enforce, keys: Vec::new() };
    assert!(new(Version::V3, &["192.0.2.1"], none).is_none());
    assert!(new(Version::V3, &vec!["192.0.2.1"; 255], Auth::None).is_some());
    assert!(new(Version::V3, &vec!["192.0.2.1"; 256], Auth::None).is_none());
}

#[test]
fn address_lists_compare_as_sets() {
    let bytes = build(
        &mut sender(Version::V3, &["192.0.2.1", "192.0.2.2"], Auth::None),
        1,
        "192.0.2.9",
        Form::Message,
    );
    let datagram = multicast("192.0.2.9", &bytes);
    let list = Packet::parse(&datagram).unwrap().addresses;
    assert_eq!(list.len(), 2);
    assert!(list.same_as(&[ip("192.0.2.2"), ip("192.0.2.1")]));
    assert!(!list.same_as(&[ip("192.0.2.1")]));
    assert!(!list.same_as(&[ip("192.0.2.1"), ip("192.0.2.3")]));
    assert!(!list.same_as(&[ip("192.0.2.1"), ip("192.0.2.1")]));
}

fn addresses(version: Version) -> BoxedStrategy<Vec<IpAddr>> {
    let v4 = prop::collection::vec(any::<[u8; 4]>().prop_map(IpAddr::from), 1..=255);
    let v6 = prop::collection::vec(any::<[u8; 16]>().prop_map(IpAddr::from), 1..=40);
    match version {
        Version::V2 => v4.boxed(),
        Version::V3 => prop_oneof![v4, v6].boxed(),
    }
}

proptest! {
    #[test]
    fn what_is_built_is_accepted(
        (version, list) in prop_oneof![Just(Version::V2), Just(Version::V3)]
            .prop_flat_map(|v| (Just(v), addresses(v))),
        vrid in 1_u8.., priority: u8, seconds in 1_u8..=40,
        form in prop_oneof![Just(Form::Message), Just(Form::Pseudo), Just(Form::PseudoMulticast)],
        secret in any::<Option<[u8; 32]>>(), pass in "[a-z]{1,8}",
    ) {
        let auth = match (version, secret) {
            (_, None) => Auth::None,
            (Version::V2, _) => password(&pass),
            (Version::V3, Some(secret)) => Auth::Hmac {
                mode: HmacMode::Enforce,
                keys: vec![HmacKey::new(9, &secret).unwrap()],
            },
        };
        let interval = Interval::from_seconds(seconds).unwrap();
        let mut sender = Sender::new(version, vrid, interval, list.clone(), auth.clone()).unwrap();
        let source = if list[0].is_ipv4() { "192.0.2.2" } else { "fe80::2" };
        let bytes = build(&mut sender, priority, source, form);
        let mut receiver =
            Receiver::new(Accepts { vrid, interval, ..accepts(version, auth) });
        let datagram = multicast(source, &bytes);
        let advert = judge(&mut receiver, &datagram).unwrap();
        prop_assert_eq!(advert.priority, priority);
        prop_assert_eq!(advert.interval, interval);
        prop_assert_eq!(advert.addresses.iter().collect::<Vec<_>>(), list);
        prop_assert_eq!(advert.authenticated, secret.is_some() && version == Version::V3);
        for cut in 0..bytes.len() {
            let short = Datagram { payload: &bytes[..cut], ..datagram };
            // All but the HMAC trailer is needed; without it the sequence is a replay or missing.
            prop_assert!(judge(&mut receiver, &short).is_err(), "cut at {}", cut);
        }
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), kind in 0x20_u8..0x40) {
        let _ = Datagram::from_ipv4(&bytes);
        let mut receiver = Receiver::new(accepts(Version::V3, hmac(HmacMode::Permissive)));
        let mut with_kind = bytes;
        if let Some(first) = with_kind.first_mut() {
            *first = kind;
        }
        for source in ["192.0.2.2", "fe80::2"] {
            let _ = judge(&mut receiver, &multicast(source, &with_kind));
        }
    }
}

#[test]
fn a_link_local_address_is_our_own_on_its_link_only() {
    let own = [(1, ip("192.0.2.1")), (1, ip("fe80::1")), (1, ip("169.254.0.1"))];
    for (interface, source, expected) in [
        (1, "192.0.2.1", true),
        (2, "192.0.2.1", true),
        (1, "fe80::1", true),
        (2, "fe80::1", false),
        (1, "169.254.0.1", true),
        (2, "169.254.0.1", false),
        (1, "fe80::2", false),
    ] {
        assert_eq!(is_own(&own, interface, ip(source)), expected, "{source} on {interface}");
    }
}

/// What is judged as a message of ours, sent by unicast.
fn judge_signal(
    accepts: Accepts,
    payload: &[u8],
    change: impl FnOnce(&mut Datagram<'_>),
) -> Result<Signal, Error> {
    let (source, destination) = (ip("192.0.2.2"), ip("192.0.2.1"));
    let mut datagram = Datagram { source, destination, hop_limit: 255, payload };
    change(&mut datagram);
    let own = is_own(&[(1, ip("192.0.2.1"))], 1, datagram.source);
    Receiver::new(accepts).judge_signal(&datagram, &Packet::parse(&datagram)?, own, NOW)
}

#[test]
fn our_own_messages_are_advertisements_of_another_type() {
    let (source, destination) = (ip("192.0.2.2"), ip("192.0.2.1"));
    let variants = [
        (Version::V2, Auth::None),
        (Version::V2, password("sesame")),
        (Version::V3, Auth::None),
        (Version::V3, hmac(HmacMode::Enforce)),
    ];
    for ((version, auth), form) in variants.iter().zip([Form::Message; 4]) {
        for (signal, kind) in
            [(Signal::HandOver, 13), (Signal::Accepted, 14), (Signal::Refused, 15)]
        {
            let mut out = Vec::new();
            let mut sender = sender(*version, &["192.0.2.100"], auth.clone());
            sender.build_signal(&mut out, signal, source, destination, form, NOW);
            assert_eq!((out[0] & 0x0f, out[2]), (kind, LAST_RESORT));
            let accepts = || accepts(*version, auth.clone());
            assert_eq!(judge_signal(accepts(), &out, |_| ()), Ok(signal));
            // No advertisement, however it comes.
            let datagram = Datagram { source, destination, hop_limit: 255, payload: &out };
            assert_eq!(judge(&mut Receiver::new(accepts()), &datagram).unwrap_err(), Error::Type);
            let datagram = multicast("192.0.2.2", &out);
            assert_eq!(judge(&mut Receiver::new(accepts()), &datagram).unwrap_err(), Error::Type);
        }
    }
    // And an advertisement is none of them.
    let advert = build(
        &mut sender(Version::V3, &["192.0.2.100"], Auth::None),
        100,
        "192.0.2.2",
        Form::Message,
    );
    assert_eq!(judge_signal(accepts(Version::V3, Auth::None), &advert, |_| ()), Err(Error::Type));
}

#[test]
fn our_own_messages_are_believed_as_advertisements_are() {
    let (source, destination) = (ip("192.0.2.2"), ip("192.0.2.1"));
    let built = |version, auth: &Auth| {
        let mut out = Vec::new();
        let mut sender = sender(version, &["192.0.2.100"], auth.clone());
        sender.build_signal(&mut out, Signal::HandOver, source, destination, Form::Message, NOW);
        out
    };
    let plain = built(Version::V3, &Auth::None);
    let v3 = || accepts(Version::V3, Auth::None);
    let peers = |peers: &[&str], both_methods, hop_limit| Accepts {
        peers: peers.iter().map(|text| ip(text)).collect(),
        both_methods,
        hop_limit,
        ..v3()
    };
    type Row<'a> = (Accepts, &'a [u8], fn(&mut Datagram<'_>), Result<Signal, Error>);
    let table: [Row<'_>; 13] = [
        (v3(), &plain, |_| (), Ok(Signal::HandOver)),
        (v3(), &plain, |d| d.hop_limit = 254, Err(Error::HopLimit)),
        (v3(), &plain, |d| d.destination = ip("224.0.0.18"), Err(Error::Destination)),
        (v3(), &plain, |d| d.source = ip("192.0.2.1"), Err(Error::Own)),
        (v3(), &plain, |d| d.source = ip("127.0.0.1"), Err(Error::Source)),
        (Accepts { vrid: 52, ..v3() }, &plain, |_| (), Err(Error::Vrid)),
        (accepts(Version::V2, Auth::None), &plain, |_| (), Err(Error::OtherVersion)),
        (accepts(Version::V3, hmac(HmacMode::Enforce)), &plain, |_| (), Err(Error::HmacMissing)),
        (
            peers(&["192.0.2.2"], false, HopLimit::Range(64..=255)),
            &plain,
            |d| d.hop_limit = 64,
            Ok(Signal::HandOver),
        ),
        (
            peers(&["192.0.2.3"], false, HopLimit::Range(64..=255)),
            &plain,
            |_| (),
            Err(Error::Source),
        ),
        (
            peers(&["192.0.2.3"], true, HopLimit::Range(64..=255)),
            &plain,
            |d| d.hop_limit = 64,
            Err(Error::HopLimit),
        ),
        (
            peers(&["192.0.2.3"], true, HopLimit::Range(64..=255)),
            &plain,
            |_| (),
            Ok(Signal::HandOver),
        ),
        (
            Accepts { checksum: ChecksumPolicy::Pseudo, ..v3() },
            &plain,
            |_| (),
            Err(Error::Checksum),
        ),
    ];
    for (place, (accepts, payload, change, expected)) in table.into_iter().enumerate() {
        assert_eq!(judge_signal(accepts, payload, change), expected, "row {place}");
    }
    let with_password = built(Version::V2, &password("sesame"));
    let other = accepts(Version::V2, password("other"));
    assert_eq!(judge_signal(other, &with_password, |_| ()), Err(Error::Password));
    // Neither a changed type nor a copy passes the HMAC.
    let mut signed = built(Version::V3, &hmac(HmacMode::Enforce));
    let enforce = || accepts(Version::V3, hmac(HmacMode::Enforce));
    let mut receiver = Receiver::new(enforce());
    let datagram = Datagram { source, destination, hop_limit: 255, payload: &signed };
    let packet = Packet::parse(&datagram).unwrap();
    assert!(receiver.judge_signal(&datagram, &packet, false, NOW).is_ok());
    let again = receiver.judge_signal(&datagram, &packet, false, NOW);
    assert_eq!(again, Err(Error::Replay));
    signed[0] = 0x3e;
    let sum = u16::from_be_bytes([signed[6], signed[7]]).wrapping_sub(0x100).to_be_bytes();
    signed[6..8].copy_from_slice(&sum);
    assert_eq!(judge_signal(enforce(), &signed, |_| ()), Err(Error::Hmac));
}
