"Everything that pyproject.toml declares dynamic, read from settings.ini."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
parser = ConfigParser(interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
status = {
    "1": "1 - Planning",
    "2": "2 - Pre-Alpha",
    "3": "3 - Alpha",
    "4": "4 - Beta",
    "5": "5 - Production/Stable",
}[cfg["status"]]
minor = int(cfg["min_python"].split(".")[1])
extras = {
    "dev": cfg["dev_requirements"].split(),
    "cluster": ["distributed>=2024.8"],
    "deseq2": ["pydeseq2>=0.5"],
    "ot": ["POT>=0.9.5"],
    "report": ["nbformat>=5.10"],  # nothing more is needed since 0.2; kept for old commands
    "bdm": ["pybdm==0.1.0"],
    "activity": ["decoupler>=2.1"],
    "embeddings": ["scvi-tools>=1.1"],
}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"].split(),
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license={"apache2": "Apache-2.0"}[cfg["license"]],
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Source": cfg["git_url"]},
    classifiers=[
        f"Development Status :: {status}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
        *(f"Programming Language :: Python :: 3.{m}" for m in range(minor, 14)),
    ],
    packages=find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]),
    package_data={
        f"{cfg['lib_path']}.experiment": ["templates/*"],  # of the report
        f"{cfg['lib_path']}.pp": ["corrections/*.csv"],  # of labels
    },
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
