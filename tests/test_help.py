"`help()` of a public name is enough to use it: every parameter is described there."

import inspect
import pydoc
import re

import pytest

import longaml as la

PUBLIC = [f"{space}.{name}" for space in la.NAMESPACES for name in getattr(la, space).__all__]


def of(path):
    space, _, name = path.partition(".")
    return getattr(getattr(la, space), name)


def described(text, name):
    "What is said of a parameter: the indented lines under its name."
    found = re.search(rf"^[ |]*\**{name} :? ?.*\n[ |]*    +(\S.*)", text, re.M)
    return found and found.group(1)


@pytest.mark.parametrize("path", PUBLIC)
def test_help_describes_every_parameter(path):
    thing = of(path)
    if not (inspect.isfunction(thing) or inspect.isclass(thing)):
        assert len(pydoc.render_doc(thing)) > 40
        return
    text = pydoc.plain(pydoc.render_doc(thing))
    assert thing.__doc__.count("Parameters\n----------") <= 1
    lacking = [n for n in inspect.signature(thing).parameters if not described(thing.__doc__, n)]
    assert lacking == [] and text


def test_help_of_a_method():
    "Public methods of public classes, too."
    fit = la.models.ScBMLPClassifier.fit
    assert described(fit.__doc__, "label_key") == "obs column of classes"
    assert described(la.tl.de.__doc__, "design").startswith("a formula")
