//! Authentication of a virtual router.

use crate::control::config::place::{Place, Reported};
use crate::control::config::raw;
use crate::protocol::vrrp::{Auth, HmacKey, HmacMode, Password, Version};

const WRITE_PASS: &str = "write 1 to 8 characters (the protocol has no room for more)";
const WRITE_KEYS: &str =
    r#"write a list of "ID:HEX", ID from 0 to 255 and 32 to 64 bytes in hexadecimal"#;

/// None, a password (version 2) or HMAC keys (version 3).
pub(super) fn read(place: &Place<'_>, raw: &raw::Vrrp, version: Version) -> Result<Auth, Reported> {
    let modes = [
        ("enforce", HmacMode::Enforce),
        ("permissive", HmacMode::Permissive),
        ("receive_only", HmacMode::ReceiveOnly),
    ];
    let mode = place.choice("auth_hmac_mode", &raw.auth_hmac_mode, &modes, HmacMode::Enforce);
    let pass = place.text("auth_pass", &raw.auth_pass, WRITE_PASS).transpose()?;
    let keys = keys(place, raw)?;
    match (pass, keys.is_empty()) {
        (None, true) => Ok(Auth::None),
        (None, false) if version == Version::V3 => Ok(Auth::Hmac { mode, keys }),
        (None, false) => {
            let place = place.child("auth_hmac_keys", place.span());
            Err(place.problem("needs version 3: write `version = 3`, or use auth_pass"))
        }
        (Some((place, _)), _) if version == Version::V3 => Err(place.problem(
            "is of version 2 only, and crosses the network in clear: write auth_hmac_keys, or \
             `version = 2` to talk to routers that need it",
        )),
        (Some((place, text)), _) => Password::new(text.as_bytes())
            .map(Auth::Pass)
            .ok_or_else(|| place.problem(format_args!("is too long or empty: {WRITE_PASS}"))),
    }
}

fn keys(place: &Place<'_>, raw: &raw::Vrrp) -> Result<Vec<HmacKey>, Reported> {
    let mut keys: Vec<HmacKey> = Vec::new();
    for (place, text) in place.texts("auth_hmac_keys", &raw.auth_hmac_keys, WRITE_KEYS) {
        let parts = text.split_once(':');
        let id = parts.and_then(|(id, _)| id.parse().ok());
        let secret = parts.and_then(|(_, secret)| hex(secret));
        let key = id.zip(secret).and_then(|(id, secret)| HmacKey::new(id, &secret));
        // The value is a secret: messages do not show it.
        let key = key.ok_or_else(|| place.problem(format_args!("is no key: {WRITE_KEYS}")))?;
        if keys.iter().any(|known| known.id() == key.id()) {
            return Err(place.problem(format_args!("has the id {} a second time", key.id())));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    rest.is_empty().then(|| bytes.collect()).flatten()
}
