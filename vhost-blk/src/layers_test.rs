use super::*;

#[test]
fn names_in_headers_are_relative_to_the_image() {
    let image = Path::new("/images/a/disk.qcow2");
    assert_eq!(beside(image, Path::new("base.raw")), Path::new("/images/a/base.raw"));
    assert_eq!(beside(image, Path::new("../base.raw")), Path::new("/images/a/../base.raw"));
    assert_eq!(beside(image, Path::new("/base.raw")), Path::new("/base.raw"));
    assert_eq!(beside(Path::new("disk.qcow2"), Path::new("base.raw")), Path::new("base.raw"));
}
