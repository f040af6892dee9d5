//! The status page: one document, which may load nothing and run nothing but what stands in it.

use aws_lc_rs::digest;

/// The document.
pub const HTML: &str = include_str!("status.html");

/// Its `Content-Security-Policy`: the hashes of its style and its script (CSP Level 3 section 8.4), and
/// requests to where it came from.
#[must_use]
pub fn policy() -> String {
    let hash = |tag: &str| format!("'sha256-{}'", base64(sha256(inside(HTML, tag)).as_ref()));
    format!(
        "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("style"),
        hash("script"),
    )
}

fn sha256(text: &str) -> digest::Digest {
    digest::digest(&digest::SHA256, text.as_bytes())
}

/// What is between the first `<tag>` and `</tag>`.
fn inside<'t>(html: &'t str, tag: &str) -> &'t str {
    let rest = html.split_once(&format!("<{tag}>")).map_or("", |(_, rest)| rest);
    rest.split_once(&format!("</{tag}>")).map_or("", |(text, _)| text)
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut word = [0; 3];
        word.iter_mut().zip(group).for_each(|(to, from)| *to = *from);
        let [a, b, c] = word.map(u32::from);
        let bits = a << 16 | b << 8 | c;
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place)) & 63;
            let used = place <= group.len();
            let digit = DIGITS.get(digit as usize).copied().filter(|_| used);
            text.push(digit.map_or('=', char::from));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (text, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for one in ["style", "script"] {
            assert!(!inside(HTML, one).is_empty(), "{one}");
            assert_eq!(
                HTML.matches(&format!("<{one}")).count(),
                1,
                "one {one}, without attributes"
            );
        }
        // What the policy would block, or what would let a name be more than text.
        for word in [
            "src=",
            "@import",
            "style=",
            "onclick",
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "javascript:",
            "https://",
        ] {
            assert!(!HTML.contains(word), "{word}");
        }
        assert!(policy().contains("script-src 'sha256-"));
    }
}
