//! Files of each kind, good and bad.

use std::io::Write;

use crate::common::{failure, folder, message, prose, put, read};
use tritrain_data::{Document, Error, Skipped, Source, documents};

fn gz(text: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(text).unwrap();
    out.finish().unwrap()
}

fn zst(text: &[u8]) -> Vec<u8> {
    zstd::encode_all(text, 1).unwrap()
}

fn document(domain: &str, name: &str, text: &str) -> Document {
    Document { domain: domain.into(), name: name.into(), text: text.into(), ..Document::default() }
}

const LINES: &str = "{\"text\": \"é\\n\", \"title\": \"T\", \"extra\": [1]}\n\n{\"id\": 7, \"text\": \"b\"}\n{\"text\": \"\"}\r\n\
                     {\"source\": \"s\", \"text\": \"c\"}\n{\"text\": \"d\", \"title\": null, \"domain\": \"other\"}";

#[test]
fn every_kind_plain_and_packed() {
    let dir = folder();
    let lines = [document("books", "T", "é\n"), document("books", "7", "b"), document("books", "s", "c")];
    for (end, pack) in
        [("", None), (".gz", Some(gz as fn(&[u8]) -> _)), (".zst", Some(zst)), (".ZST", Some(zst))]
    {
        let packed = |text: &str| pack.map_or_else(|| text.as_bytes().to_vec(), |pack| pack(text.as_bytes()));
        for kind in ["txt", "md", "rst", "html", "rs", "py", "c", "TOML"] {
            let name = format!("a.{kind}{end}");
            let path = put(dir.path(), &name, packed("x\r\n ü"));
            assert_eq!(read(&path), [document("a", &name, "x\r\n ü")]);
        }
        let path = put(dir.path(), &format!("books.jsonl{end}"), packed(LINES));
        let found = read(&path);
        assert_eq!(found[..3], lines);
        assert_eq!((found.len(), found[3].domain.as_str()), (4, "other"));
        assert_eq!(found[3].name, format!("books.jsonl{end}:6"));
    }
}

#[test]
fn packed_files_may_be_concatenated() {
    let dir = folder();
    let path = put(dir.path(), "a.txt.gz", [gz(b"one "), gz(b"two")].concat());
    assert_eq!(read(&path)[0].text, "one two");
    let path = put(dir.path(), "a.txt.zst", [zst(b"one "), zst(b"two")].concat());
    assert_eq!(read(&path)[0].text, "one two");
}

#[test]
fn a_byte_order_mark_is_no_text() {
    let dir = folder();
    assert_eq!(read(&put(dir.path(), "a.txt", "\u{feff}x"))[0].text, "x");
    assert_eq!(read(&put(dir.path(), "a.jsonl", "\u{feff}{\"text\": \"x\"}"))[0].text, "x");
    assert!(read(&put(dir.path(), "b.txt", "\u{feff}")).is_empty());
}

#[test]
fn folders_in_the_order_of_names() {
    let dir = folder();
    let root = dir.path().join("corpus");
    for name in ["b.txt", "a.md", "en/z.txt", "en/deep/y.txt", "de/x.rs", "sub/wiki.jsonl", "empty.txt"] {
        let text = if name.ends_with("jsonl") { "{\"text\":\"j\",\"name\":\"n\"}" } else { name };
        put(&root, name, if name == "empty.txt" { "" } else { text });
    }
    for name in
        [".hidden.txt", ".git/config.txt", ".git/more.txt", "image.png", "README", "data.json", ".txt"]
    {
        put(&root, name, "x");
    }
    let found = read(&root);
    let expected = [
        document("corpus", "a.md", "a.md"),
        document("corpus", "b.txt", "b.txt"),
        document("de", "de/x.rs", "de/x.rs"),
        document("en", "en/deep/y.txt", "en/deep/y.txt"),
        document("en", "en/z.txt", "en/z.txt"),
        document("wiki", "n", "j"),
    ];
    assert_eq!(found, expected);
    let again = Source::Paths(vec![root.clone(), root.join("en"), root.join("b.txt")]).open().unwrap();
    assert_eq!(again.skipped(), Skipped { hidden: 3, unknown: 3, repeated: 3 });
    assert_eq!(again.count(), 6);
}

#[test]
fn large_text_is_cut_at_blank_lines() {
    let dir = folder();
    let text = prose(1, 200_000);
    assert!(text.len() > 9 << 20);
    for (name, bytes) in [("a.txt", text.as_bytes().to_vec()), ("a.txt.zst", zst(text.as_bytes()))] {
        let found = read(&put(dir.path(), name, bytes));
        assert!(found.iter().map(|d| d.text.as_str()).collect::<String>() == text);
        assert_eq!((found[0].name.as_str(), found[1].name.as_str()), ("a.txt#1", "a.txt#2").map_end(name));
        for (i, piece) in found.iter().enumerate() {
            assert_eq!(piece.domain, "a");
            assert!(piece.text.len() <= 256 << 10);
            assert!(i + 1 == found.len() || piece.text.ends_with("\n\n") && piece.text.len() >= 128 << 10);
        }
    }
    // Up to 8 MiB a file is one document.
    let whole = text.get(..8 << 20).unwrap();
    assert_eq!(read(&put(dir.path(), "b.txt", whole)).len(), 1);
}

trait MapEnd {
    fn map_end(self, file: &str) -> (&'static str, &'static str);
}

impl MapEnd for (&'static str, &'static str) {
    fn map_end(self, file: &str) -> (&'static str, &'static str) {
        if file.ends_with(".zst") { ("a.txt.zst#1", "a.txt.zst#2") } else { self }
    }
}

#[test]
fn large_text_without_lines_is_cut_between_characters() {
    let dir = folder();
    for unit in ["日", "🙂x"] {
        let text = unit.repeat((9 << 20) / unit.len());
        let found = read(&put(dir.path(), "a.txt", &text));
        assert!(found.len() > 30);
        assert!(found.iter().map(|d| d.text.as_str()).collect::<String>() == text);
    }
    let lines = format!("{}\n", "y".repeat(200_000)).repeat(50);
    let found = read(&put(dir.path(), "a.txt", &lines));
    assert!(found.iter().all(|d| d.text.len() == 200_001));
}

#[test]
fn bad_utf8_is_an_error_with_its_place() {
    let dir = folder();
    assert_eq!(
        failure(&put(dir.path(), "a.txt", b"one\ntw\xffo")),
        "a.txt:2: expected UTF-8, found byte 0xff at offset 6 of the text \
         (convert the file, for example with iconv -f latin1 -t utf8)"
    );
    let line = b"{\"text\": \"a\"}\n{\"text\": \"\xe9\"}\n";
    let expected = ":2: expected UTF-8, found byte 0xe9 at offset 24 of the text (convert the file";
    assert!(failure(&put(dir.path(), "a.jsonl", line)).starts_with(&format!("a.jsonl{expected}")));
    assert!(failure(&put(dir.path(), "a.jsonl.gz", gz(line))).starts_with(&format!("a.jsonl.gz{expected}")));
    // In a later piece of a large file, and in a character cut short by the end.
    let mut large = "line\n".repeat(2 << 20).into_bytes();
    large[10_000_001] = 0xc3;
    let text = failure(&put(dir.path(), "b.txt", &large));
    assert!(text.starts_with("b.txt:2000001: expected UTF-8, found byte 0xc3 at offset 10000001"), "{text}");
    let text = failure(&put(dir.path(), "c.txt", b"caf\xc3"));
    assert!(text.starts_with("c.txt:1: expected UTF-8, found byte 0xc3 at offset 3"), "{text}");
}

#[test]
fn bad_lines_are_errors_with_their_place() {
    let dir = folder();
    let hint = "(each line is one object with its text in the field \"text\"; repair or remove the line)";
    for (lines, expected) in [
        (
            "{\"text\": \"a\"}\n{\"text\": \"b\n",
            ":2: expected a JSON object with a string \"text\", found EOF while parsing a string at column 11",
        ),
        ("[1]\n", ":1: expected a JSON object with a string \"text\", found "),
        (
            "\n\n{\"text\": 5}\n",
            ":3: expected a JSON object with a string \"text\", found invalid type: integer `5`, expected a string",
        ),
        (
            "{\"title\": \"t\", \"body\": \"b\"}\n",
            ":1: expected a field \"text\" or \"messages\", found the fields [title, body]",
        ),
        ("{\"text\": \"\\ud800\"}\n", ":1: expected a JSON object"),
        ("{\"text\": null}\n", ":1: expected a field \"text\" or \"messages\", found the fields [text]"),
        (
            "{\"text\": \"a\"} {\"text\": \"b\"}\n",
            ":1: expected a JSON object with a string \"text\", found trailing characters",
        ),
    ] {
        let text = failure(&put(dir.path(), "a.jsonl", lines));
        assert!(text.starts_with(&format!("a.jsonl{expected}")), "{text}");
        assert!(text.ends_with(hint), "{text}");
    }
}

#[test]
fn the_stream_ends_after_an_error() {
    let dir = folder();
    let path = put(dir.path(), "a.jsonl", "{\"text\": \"a\"}\nnonsense\n{\"text\": \"b\"}\n");
    let found: Vec<_> = documents(&[path]).unwrap().collect();
    assert!(matches!(&found[..], [Ok(_), Ok(_), Err(Error::Line { line: 2, .. })]));
}

#[test]
fn a_few_damaged_lines_are_left_out_and_reported() {
    let dir = folder();
    let lines = |bad: usize| -> String {
        let line = |i: usize| {
            if i % 20 < bad { "{\"text\": \"torn\n".to_owned() } else { format!("{{\"text\": \"{i}\"}}\n") }
        };
        (0..100).map(|i| line(i + 19)).collect()
    };
    let path = put(dir.path(), "some.jsonl", lines(1));
    let mut stream = Source::Paths(vec![path]).open().unwrap();
    assert_eq!(stream.by_ref().map(Result::unwrap).count(), 95);
    let [damage] = stream.damaged() else { panic!("{:?}", stream.damaged()) };
    assert!(damage.starts_with("left out 5 of 100 lines, the first: "), "{damage}");
    assert!(damage.contains("some.jsonl:2: expected a JSON object"), "{damage}");
    let text = failure(&put(dir.path(), "many.jsonl", lines(2)));
    assert!(text.starts_with("many.jsonl:2: expected a JSON object"), "{text}");
}

#[test]
fn bad_paths() {
    let dir = folder();
    let path = dir.path().join("absent.txt");
    assert!(
        failure(&path).starts_with("cannot find absent.txt: expected a file or a folder (check the path")
    );
    let text = failure(&put(dir.path(), "a.png", "x"));
    assert!(
        text.starts_with("cannot read a.png as text: expected .jsonl or a text or source file"),
        "{text}"
    );
    assert!(text.contains("found .png (rename it, or convert it"), "{text}");
    assert!(failure(&put(dir.path(), "README", "x")).contains("found no ending"));
    assert!(failure(&put(dir.path(), "a.json", "{}")).contains("found .json"));
}

#[test]
fn damaged_archives() {
    let dir = folder();
    let text = prose(3, 2000);
    for (name, packed) in [("a.txt.gz", gz(text.as_bytes())), ("a.txt.zst", zst(text.as_bytes()))] {
        let short = put(dir.path(), name, &packed[..packed.len() / 2]);
        let text = failure(&short);
        assert!(text.starts_with(&format!("cannot read {name}: ")), "{text}");
        assert!(text.ends_with("(the compressed file is cut short; fetch or pack it again)"), "{text}");
        let text = failure(&put(dir.path(), name, "not packed at all, but plain text"));
        assert!(text.starts_with(&format!("cannot read {name}: ")), "{text}");
        assert!(text.ends_with("damaged or not what its ending says)"), "{text}");
    }
}

#[test]
fn exit_codes() {
    let dir = folder();
    let first = |name: &str, bytes: &[u8]| {
        let path = put(dir.path(), name, bytes);
        let error = match documents(std::slice::from_ref(&path)) {
            Err(error) => error,
            Ok(mut all) => all.find_map(Result::err).unwrap(),
        };
        (error.exit_code(), message(&error, &path))
    };
    assert_eq!(first("a.png", b"").0, 2);
    assert_eq!(first("a.txt", b"\xff").0, 2);
    assert_eq!(first("a.jsonl", b"x").0, 2);
    assert_eq!(first("a.txt.gz", b"x").0, 4);
    assert_eq!(documents(&["/nowhere".into()]).map(|_| ()).unwrap_err().exit_code(), 2);
}

#[test]
fn embedded_text_goes_the_same_way() {
    let bytes: &'static [u8] = zst(LINES.as_bytes()).leak();
    let config = tritrain_data::DataConfig::default();
    let source = Source::new(&config, bytes);
    let found: Vec<_> = source.open().unwrap().map(Result::unwrap).collect();
    assert_eq!(found[0], document("embedded", "T", "é\n"));
    assert_eq!(found[3], document("other", "embedded:6", "d"));
    assert_eq!(source.stamp().unwrap(), source.stamp().unwrap());
}
