//! Arrays of NumPy: bytes that it wrote, and files that are no matrix.

use std::path::Path;

use proptest::prelude::*;
use tritrain_files::npy;
use tritrain_files::{Error, FaultyStorage, Storage};

fn path() -> &'static Path {
    Path::new("/x.npy")
}

fn stored(bytes: &[u8]) -> FaultyStorage {
    let storage = FaultyStorage::new();
    tritrain_files::write_atomic(&storage, path(), bytes).unwrap();
    storage
}

/// Rows, columns and values.
type Read = (usize, usize, Vec<f32>);

fn read(bytes: &[u8]) -> Result<Read, Error> {
    all(&stored(bytes))
}

fn all(storage: &FaultyStorage) -> Result<Read, Error> {
    let matrix = npy::open(storage, path())?;
    Ok((matrix.rows(), matrix.columns(), matrix.read(0..usize::MAX)))
}

/// As NumPy 2 writes: `numpy.save(f, numpy.array(.., dtype))`, by hand from its documentation.
fn array(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn matrices_of_both_types_are_read() {
    let values = [1.5f32, -2.0, 0.0, 3.25, 1e-3, 7.0];
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }           \n";
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let expected = (2, 3, values.to_vec());
    assert_eq!(read(&array(header, &bytes)).unwrap(), expected);
    let bytes: Vec<u8> = values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    let header = "{'shape': (2, 3), 'fortran_order': False, 'descr': '<f8'}\n";
    assert_eq!(read(&array(header, &bytes)).unwrap(), expected);
    let mut second = b"\x93NUMPY\x02\x00".to_vec();
    second.extend((header.len() as u32).to_le_bytes());
    second.extend(header.bytes().chain(bytes));
    assert_eq!(read(&second).unwrap(), expected);
}

#[test]
fn what_is_written_is_what_numpy_writes() {
    let storage = FaultyStorage::new();
    npy::write_labels(&storage, path(), &[7, 300]).unwrap();
    // python3 -c "import numpy, sys; numpy.save(sys.stdout.buffer, numpy.array([7, 300], 'u4'))"
    let mut expected =
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<u4', 'fortran_order': False, 'shape': (2,), }".to_vec();
    expected.resize(127, b' ');
    expected.extend(b"\n\x07\x00\x00\x00\x2c\x01\x00\x00");
    assert_eq!(storage.read(path()).unwrap(), expected);
    npy::write(&storage, path(), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2).unwrap();
    assert_eq!(all(&storage).unwrap(), (3, 2, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let matrix = npy::open(&storage, path()).unwrap();
    assert_eq!(matrix.read(1..2), [3.0, 4.0]);
    assert_eq!((matrix.read(2..9), matrix.read(7..9)), (vec![5.0, 6.0], Vec::new()));
}

#[test]
fn other_files_are_refused_with_a_reason() {
    let with = |descr: &str, order: &str, shape: &str| {
        format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n")
    };
    let cases: [(Vec<u8>, &str); 12] = [
        (Vec::new(), "first bytes"),
        (b"PK\x03\x04 an archive".to_vec(), "first bytes"),
        (b"\x93NUMPY\x01\x00\xff".to_vec(), "version"),
        (b"\x93NUMPY\x09\x00\x02\x00ab".to_vec(), "version"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xffab".to_vec(), "length of the header"),
        (array("{}", &[]), "descr"),
        (array(&with("'<i8'", "False", "(1, 1)"), &[0; 8]), "type"),
        (array(&with("'>f4'", "False", "(1, 1)"), &[0; 4]), "type"),
        (array(&with("'<f4'", "True", "(1, 1)"), &[0; 4]), "order"),
        (array(&with("'<f4'", "False", "(4,)"), &[0; 16]), "shape"),
        (array(&with("'<f4'", "False", "(1, 2, 2)"), &[0; 16]), "shape"),
        (array(&with("'<f4'", "False", "(18446744073709551615, 8)"), &[0; 16]), "length of the array"),
    ];
    for (bytes, reason) in cases {
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(header in "[ -~]{0,80}", data in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _ = read(&array(&header, &data));
        let _ = read(&data);
    }
}
