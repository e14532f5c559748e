//! The byte alphabet: byte-level BPE writes each byte as one printable character.

use std::sync::LazyLock;

/// The character of each byte: itself where it is printable in Latin-1, else one from U+0100 on
/// (Radford et al. 2019, `bytes_to_unicode`).
static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100u32;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or_default()
        }
    })
});

/// The byte of each character below U+0144.
static BYTES: LazyLock<Vec<Option<u8>>> = LazyLock::new(|| {
    let mut bytes = vec![None; 0x144];
    for (byte, &c) in CHARS.iter().enumerate() {
        if let Some(slot) = bytes.get_mut(c as usize) {
            *slot = Some(byte as u8);
        }
    }
    bytes
});

/// Appends the characters of the bytes.
pub(crate) fn push_chars(bytes: &[u8], out: &mut String) {
    out.extend(bytes.iter().filter_map(|&byte| CHARS.get(usize::from(byte))));
}

/// The bytes a token stands for; `None` when it has characters outside the alphabet.
pub(crate) fn to_bytes(token: &str) -> Option<Vec<u8>> {
    token.chars().map(|c| BYTES.get(c as usize).copied().flatten()).collect()
}

/// The characters of all bytes.
pub(crate) fn alphabet() -> impl Iterator<Item = char> {
    CHARS.iter().copied()
}
