"""A place made by code: wet and dry ground in waves, as a scene and as samples of it."""

from osgeo import gdal, ogr, osr

WIDTH, HEIGHT = 96, 72  # a few dozen tiles of the preset "laptop"
CORNER, PIXEL_M = (390000.0, 5820000.0), 30.0
# a band in each range of Galileo and Prithvi, and some between
WAVELENGTHS_NM = (
    *(443, 492, 560, 610, 655, 704, 740, 783, 833, 865, 940, 1050, 1240, 1560),
    *(1614, 1700, 2070, 2202, 2300),
)
LANDSAT_NM = (482, 561, 655, 865, 1609, 2201)


def wetness(column, row):
    """What there is to learn: 0 to 1, in waves that cross every block."""
    return ((column * 3 + row * 5) % 48) / 47


def write_scene(path, wavelengths_nm):
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32633)
    scene = gdal.GetDriverByName("GTiff").Create(
        str(path), WIDTH, HEIGHT, len(wavelengths_nm), gdal.GDT_Int16
    )
    scene.SetGeoTransform((CORNER[0], PIXEL_M, 0, CORNER[1], 0, -PIXEL_M))
    scene.SetProjection(reference.ExportToWkt())
    for number, wavelength in enumerate(wavelengths_nm, 1):
        band = scene.GetRasterBand(number)
        dry, wet = 3000 if wavelength > 700 else 400, 600 - wavelength // 5
        values = [
            round(dry + (wet - dry) * wetness(column, row)) + (column * 7 + row * 13) % 40
            for row in range(HEIGHT)
            for column in range(WIDTH)
        ]
        packed = b"".join(value.to_bytes(2, "little", signed=True) for value in values)
        band.WriteRaster(0, 0, WIDTH, HEIGHT, packed, buf_type=gdal.GDT_Int16)
        band.SetMetadataItem("wavelength", str(wavelength))
        band.SetMetadataItem("wavelength_units", "nm")
        band.SetMetadataItem("fwhm", "10" if len(wavelengths_nm) > 10 else "40")
        band.SetNoDataValue(-32768)
        band.SetScale(0.0001)
    del band, scene
    return str(path)


def write_samples(path, row_step=2):
    """Points with a number and a class, on every third column of some rows."""
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32633)
    source = ogr.GetDriverByName("GPKG").CreateDataSource(str(path))
    layer = source.CreateLayer("samples", reference, ogr.wkbPoint)
    layer.CreateField(ogr.FieldDefn("moisture", ogr.OFTReal))
    layer.CreateField(ogr.FieldDefn("cover", ogr.OFTString))
    for row in range(0, HEIGHT, row_step):
        for column in range(row % 3, WIDTH, 3):
            feature = ogr.Feature(layer.GetLayerDefn())
            feature["moisture"] = 10.0 + 30.0 * wetness(column, row)
            feature["cover"] = "wet" if wetness(column, row) > 0.5 else "dry"
            x, y = CORNER[0] + (column + 0.5) * PIXEL_M, CORNER[1] - (row + 0.5) * PIXEL_M
            feature.SetGeometry(ogr.CreateGeometryFromWkt(f"POINT ({x} {y})"))
            layer.CreateFeature(feature)
    del layer, source
    return str(path)
