//! Archives as PyTorch writes them, whatever the name of the folder in them: it is that under which the file was first saved.

use repfuse::tensor::Checkpoint;

/// Entries begin at multiples of this in PyTorch's archives.
const ALIGNED: usize = 64;

/// What an entry says: the bytes in its place, or 64-bit fields behind the 32-bit ones.
#[derive(Clone, Copy, PartialEq)]
enum Fields {
    Narrow,
    Wide,
}

fn u16s(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// An archive of stored entries below a folder, with the 64-bit end records that PyTorch always writes.
fn archive(root: &str, entries: &[(&str, &[u8])], fields: Fields) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let name = format!("{root}/{name}");
        let (at, len) = (file.len(), bytes.len() as u64);
        let sum = crc32fast::hash(bytes);
        let sizes = match fields {
            Fields::Narrow => [len as u32; 2],
            Fields::Wide => [u32::MAX; 2],
        };
        let wide = match fields {
            Fields::Narrow => Vec::new(),
            Fields::Wide => [u16s(&[1, 16]), u64s(&[len, len])].concat(),
        };
        let fixed = at + 30 + name.len() + wide.len() + 4;
        let fill = fixed.next_multiple_of(ALIGNED) - fixed;
        let extra = [wide, b"FB".to_vec(), u16s(&[fill as u16]), vec![b'Z'; fill]].concat();
        let common = [u16s(&[0, 0, 0, 0]), u32s(&[sum]), u32s(&sizes)].concat();
        file.extend(b"PK\x03\x04\0\0");
        file.extend(&common);
        file.extend(u16s(&[name.len() as u16, extra.len() as u16]));
        file.extend(name.as_bytes());
        file.extend(&extra);
        assert_eq!(file.len() % ALIGNED, 0);
        file.extend(*bytes);
        let wide = match fields {
            Fields::Narrow => Vec::new(),
            Fields::Wide => [u16s(&[1, 24]), u64s(&[len, len, at as u64])].concat(),
        };
        directory.extend(b"PK\x01\x02\0\0\0\0");
        directory.extend(&common);
        directory.extend(u16s(&[name.len() as u16, wide.len() as u16, 0, 0, 0, 0, 0]));
        directory.extend(match fields {
            Fields::Narrow => u32s(&[at as u32]),
            Fields::Wide => u32s(&[u32::MAX]),
        });
        directory.extend(name.as_bytes());
        directory.extend(wide);
    }
    let (at, len, count) = (file.len(), directory.len(), entries.len());
    file.extend(&directory);
    let end_64 = file.len() as u64;
    file.extend(b"PK\x06\x06");
    file.extend(u64s(&[44]));
    file.extend(u16s(&[0x31e, 0x2d]));
    file.extend(u32s(&[0, 0]));
    file.extend(u64s(&[count as u64, count as u64, len as u64, at as u64]));
    file.extend(b"PK\x06\x07");
    file.extend(u32s(&[0]));
    file.extend(u64s(&[end_64]));
    file.extend(u32s(&[1]));
    file.extend(b"PK\x05\x06");
    file.extend(u16s(&[0, 0, count as u16, count as u16]));
    file.extend(u32s(&[len as u32, at as u32]));
    file.extend(u16s(&[0]));
    file
}

fn string(text: &str) -> Vec<u8> {
    let len = (text.len() as u32).to_le_bytes();
    [b"X", &len[..], text.as_bytes()].concat()
}

/// The pickle of a state dict with one tensor of one number.
fn pickle() -> Vec<u8> {
    [
        b"\x80\x02}q\x00",
        &string("a.weight")[..],
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &string("storage"),
        b"ctorch\nFloatStorage\n",
        &string("0"),
        &string("cpu"),
        b"K\x01tQK\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    .concat()
}

#[test]
fn archives_are_read_whatever_the_name_of_their_folder() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file.pth");
    let (pickle, number) = (pickle(), 1.5f32.to_le_bytes());
    let entries: [(&str, &[u8]); 5] = [
        ("data.pkl", &pickle),
        ("byteorder", b"little"),
        ("data/0", &number),
        ("version", b"3\n"),
        (
            ".data/serialization_id",
            b"0636067300512171634403205490305812380906",
        ),
    ];
    for letters in 1..=120 {
        for fields in [Fields::Narrow, Fields::Wide] {
            let root = "n".repeat(letters);
            std::fs::write(&path, archive(&root, &entries, fields)).expect("a file");
            let file = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{letters}: {e}"));
            let tensor = file.get("a.weight").expect("a tensor");
            let mut bytes = [0; 4];
            file.read_at(tensor, 0, &mut bytes).expect("its number");
            assert_eq!(bytes, number, "{letters}");
        }
    }
}

/// The test's own archives are such that another reader takes them, where it does not look for junk in front.
#[test]
fn another_reader_takes_the_same_archives() {
    let entries: [(&str, &[u8]); 2] = [("data.pkl", b"a"), ("version", b"3\n")];
    for fields in [Fields::Narrow, Fields::Wide] {
        let bytes = archive("model", &entries, fields);
        let mut zip = zip::ZipArchive::new(std::io::Cursor::new(bytes)).expect("an archive");
        let mut text = String::new();
        let mut entry = zip.by_name("model/version").expect("an entry");
        std::io::Read::read_to_string(&mut entry, &mut text).expect("text");
        assert_eq!(text, "3\n");
    }
}
