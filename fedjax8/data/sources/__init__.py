"""Data sets, one per file, each with a factory named like the file that returns a `Dataset`.

Factories that read files take `data_dir` first; None means `$FEDJAX8_DATA`. They accept the set as `NAME.npz`
(arrays `x_train`, `y_train`, `x_test`, `y_test` and, where clients are natural, `client_train`,
`client_test`) or as the official raw files, in the data directory or in its folder `NAME`. `speech_commands`
takes its unpacked official folder alone, as it computes features from it, `shakespeare` texts with offsets,
`image_folder` images with a folder for each class, `pcam` also its h5 files, and `mapped` a folder of clients too large
to be read. `part` is some rows or classes of another set.
"""
