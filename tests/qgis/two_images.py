"""One place seen twice: a hyperspectral image of coarse pixels, a multispectral one of fine."""

import math

from osgeo import gdal, osr

RATIO = 3
WIDTH, HEIGHT = 60, 48  # coarse pixels
CORNER, COARSE_M = (390000.0, 5820000.0), 30.0
WAVELENGTHS_NM = (*range(430, 971, 20), 1050, 1240, 1560, 1650, 2070, 2202, 2300)
FWHM_NM = 20
FINE_NM = ((490, 65), (560, 35), (665, 30), (842, 115))  # centre and width, as of Sentinel-2
SCALE = 0.0001


def spectra(wavelength_nm):
    """Reflectance of soil, plants and water: straight, with an edge, and falling."""
    edge = 1 / (1 + math.exp(-(wavelength_nm - 715) / 20))
    dry = 0.08 + 0.25 * (wavelength_nm - 400) / 1900
    green = 0.03 * math.exp(-(((wavelength_nm - 560) / 40) ** 2))
    plants = 0.03 + green + 0.42 * edge * math.exp(-max(0, wavelength_nm - 1100) / 900)
    return dry, plants, 0.06 * math.exp(-(wavelength_nm - 400) / 300) + 0.004


def shares(column, row):
    """What a fine pixel consists of: fields with straight borders, a lake, and waves in both."""
    field = ((column // 11) * 7 + (row // 8) * 5) % 6 / 5
    wave = 0.5 + 0.5 * math.sin(column / 3.1) * math.cos(row / 4.3)
    plants = min(1.0, max(0.0, 0.75 * field + 0.25 * wave))
    lake = 1.0 if math.hypot(column - 60, row - 90) < 25 + 4 * math.sin(row / 5) else 0.0
    return (1 - plants) * (1 - lake), plants * (1 - lake), lake


def fine_shares():
    return [
        [shares(column, row) for column in range(RATIO * WIDTH)] for row in range(RATIO * HEIGHT)
    ]


def block_mean(fine, column, row):
    block = [fine[RATIO * row + y][RATIO * column + x] for y in range(RATIO) for x in range(RATIO)]
    return [sum(part) / len(block) for part in zip(*block, strict=True)]


def mixed(parts, ends):
    return sum(share * end for share, end in zip(parts, ends, strict=True))


def fine_spectra(centre_nm, width_nm):
    """What a broad band sees of each ground: a mean over its width."""
    seen = [spectra(centre_nm + width_nm * (step / 10 - 0.5)) for step in range(11)]
    return [sum(part) / len(seen) for part in zip(*seen, strict=True)]


def write_image(path, rows, bands, pixel_m, corner=CORNER):
    """Write parts of ground as bands: of each, wavelength, width and the reflectance of parts."""
    reference = osr.SpatialReference()
    reference.ImportFromEPSG(32633)
    size = len(rows[0]), len(rows)
    image = gdal.GetDriverByName("GTiff").Create(str(path), *size, len(bands), gdal.GDT_Int16)
    image.SetGeoTransform((corner[0], pixel_m, 0, corner[1], 0, -pixel_m))
    image.SetProjection(reference.ExportToWkt())
    for number, (wavelength, fwhm, ends) in enumerate(bands, 1):
        band = image.GetRasterBand(number)
        values = (
            round(mixed(parts, ends) / SCALE) + (7 * x + 13 * y + 5 * number) % 11 - 5
            for y, row in enumerate(rows)
            for x, parts in enumerate(row)
        )
        packed = b"".join(value.to_bytes(2, "little", signed=True) for value in values)
        band.WriteRaster(0, 0, *size, packed, buf_type=gdal.GDT_Int16)
        band.SetMetadataItem("wavelength", str(wavelength))
        band.SetMetadataItem("wavelength_units", "nm")
        band.SetMetadataItem("fwhm", str(fwhm))
        band.SetDescription(f"{wavelength} nm")
        band.SetNoDataValue(-32768)
        band.SetScale(SCALE)
    del band, image
    return str(path)


def write_pair(folder):
    """Write ``hsi.tif``, ``msi.tif`` and ``truth.tif``, which is what a fusion should make."""
    fine = fine_shares()
    coarse = [[block_mean(fine, x, y) for x in range(WIDTH)] for y in range(HEIGHT)]
    narrow = [(wavelength, FWHM_NM, spectra(wavelength)) for wavelength in WAVELENGTHS_NM]
    broad = [(centre, width, fine_spectra(centre, width)) for centre, width in FINE_NM]
    write_image(folder / "hsi.tif", coarse, narrow, COARSE_M)
    write_image(folder / "msi.tif", fine, broad, COARSE_M / RATIO)
    write_image(folder / "truth.tif", fine, narrow, COARSE_M / RATIO)
    return folder


def move(path, source, right_m, down_m):
    """Copy an image, and say that it lies elsewhere."""
    gdal.Translate(str(path), str(source))
    image = gdal.Open(str(path), gdal.GA_Update)
    left, width, _, top, _, height = image.GetGeoTransform()
    image.SetGeoTransform((left + right_m, width, 0, top - down_m, 0, height))
    del image
    return str(path)
