"""The words by which headers of tables name their columns, in the languages of spreadsheets."""

from __future__ import annotations

import re
import unicodedata

from resp_tune.data.columns import Column, any_word

_IDS = "(id|ids|no|nr|num|number|code|key|identifier|nummer|numero)?"
_PERSONS = (
    "patients?|subjects?|participants?|pacientes?|patienten|patientin|pazient[ei]|doentes?|"
    "utentes?|hasta|患者|病人|환자|пациент"
)
PATIENT = Column(
    "patient",
    "patient, patient ID, subject, participant",
    re.compile(
        unicodedata.normalize("NFKD", f"(id|no|nr|num|numero|cod|code)?({_PERSONS}){_IDS}|pid")
    ),
    frozenset(
        (
            "id",
            "ids",
            "case",
            "cases",
            "caseid",
            "caseno",
            "casenumber",
            "person",
            "personid",
            "name",
        )
    ),
)
DIAGNOSIS = Column(
    "diagnosis",
    "diagnosis, disease, label, class, condition",
    any_word(
        "diagnosis diagnoses diagnose diagnosen diagnostic diagnóstico diagnosi diagnoza disease "
        "diseases dx enfermedad maladie krankheit malattia doença tanı tani 诊断 診断 진단 диагноз"
    ),
    frozenset(("label", "labels", "class", "condition", "pathology")),
)
AGE = Column(
    "age",
    "age, age (years)",
    re.compile(
        "(age|edad|alter|eta|idade|yas|年齢|年龄|возраст)"
        "((in)?(y|yo|yrs?|years?|jahren?|anos|anni|ans|yıl|岁))?"
    ),
)
SEX = Column(
    "sex",
    "sex, gender",
    any_word("sex gender sexo sexe sesso género geschlecht cinsiyet 性别 性別 пол"),
)
RECORDING = Column(
    "recording",
    "recording, file, filename",
    any_word(
        "recording recordings recordingid recordingname file files "
        "filename stem wav wavfile audio audiofile"
    ),
    frozenset(("name", "id", "record")),
)
SPLIT = Column(
    "split",
    "split, set, subset",
    any_word("split splits set subset partition officialsplit traintest"),
)
COLUMNS = (PATIENT, DIAGNOSIS, AGE, SEX, RECORDING, SPLIT)
