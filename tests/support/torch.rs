//! Files of `torch.save` put together opcode by opcode, so that any part can be broken.

/// A text of a pickle.
pub fn text(text: &str) -> Vec<u8> {
    let len = (text.len() as u32).to_le_bytes();
    [b"X", &len[..], text.as_bytes()].concat()
}

/// An archive of parts that are stored as they are.
pub fn archive(parts: &[(&str, &[u8])]) -> Vec<u8> {
    use std::io::Write as _;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (part, bytes) in parts {
        zip.start_file(format!("archive/{part}"), stored)
            .expect("a part");
        zip.write_all(bytes).expect("its bytes");
    }
    zip.finish().expect("an archive").into_inner()
}

/// How a pickle describes a tensor of one number.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    pub class: &'a str,
    pub key: &'a [u8],
    /// What stands behind the five parts of a storage.
    pub part: &'a [u8],
    pub offset: &'a [u8],
    pub shape: &'a [u8],
    pub strides: &'a [u8],
    pub metadata: &'a [u8],
}

/// One that is read.
pub const ONE: Tensor<'static> = Tensor {
    class: "FloatStorage",
    key: b"U\x010",
    part: b"",
    offset: b"K\x00",
    shape: b"K\x01\x85",
    strides: b"K\x01\x85",
    metadata: b"",
};

impl Tensor<'_> {
    pub fn pickled(self) -> Vec<u8> {
        let class = format!("ctorch\n{}\n", self.class);
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n((" as &[u8],
            &text("storage"),
            class.as_bytes(),
            self.key,
            &text("cpu"),
            b"K\x01",
            self.part,
            b"tQ",
            self.offset,
            self.shape,
            self.strides,
            b"\x89ccollections\nOrderedDict\n)R",
            self.metadata,
            b"tR",
        ]
        .concat()
    }
}

/// A state dict of one value, with opcodes before it.
pub fn holding(before: &[u8], value: &[u8]) -> Vec<u8> {
    [b"\x80\x02", before, b"}", &text("a.weight"), value, b"s."].concat()
}

/// A state dict of one tensor, with opcodes before it.
pub fn state_dict(before: &[u8]) -> Vec<u8> {
    holding(before, &ONE.pickled())
}

/// A whole file whose pickle this is.
pub fn whole(pickle: &[u8]) -> Vec<u8> {
    archive(&[
        ("data.pkl", pickle),
        ("version", b"3\n"),
        ("data/0", &[0; 4]),
    ])
}
